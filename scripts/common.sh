# shellcheck shell=bash
# Functions shared by the scripts in this folder: packages, the virtual environment, root.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv

say() { printf '%s\n' "$*" >&2; }

# in_background LOG COMMAND...: start a command, in a process group of its own; its number is $!.
in_background() {
    local log=$1
    shift
    set -m
    "$@" >"$log" 2>&1 &
    set +m
}

# await PID LOG: wait for such a command, and show what it said; return its exit status.
await() {
    local status=0
    wait "$1" || status=$?
    cat "$2" >&2
    return $status
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

# need_packages COMMAND:PACKAGE...: install the Debian packages whose command (or file) is missing.
need_packages() {
    local pair missing=()
    for pair in "$@"; do
        local what=${pair%%:*} package=${pair##*:}
        if [[ $what == /* ]]; then [ -e "$what" ]; else
            PATH=$PATH:/usr/sbin:/sbin command -v "$what" >/dev/null; fi || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    say "installing Debian packages: ${missing[*]}"
    if ! command -v apt-get >/dev/null; then
        say "error: apt-get is not installed: install the packages by other means, then run this again"
        exit 1
    fi
    as_root apt-get update -qq >&2 || true
    if ! as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq "${apt_options[@]}" "${missing[@]}" >&2; then
        say "error: apt-get could not install ${missing[*]}: see above; check the network"
        exit 1
    fi
}
apt_options=()

# need_qemu ARCHITECTURE: install the packages for scripts/vm, without the recommended graphics.
need_qemu() {
    local apt_options=(--no-install-recommends) qemu="qemu-system-x86_64:qemu-system-x86"
    if [ "$1" = aarch64 ]; then qemu="qemu-system-aarch64:qemu-system-arm"; fi
    need_packages "$qemu" depmod:kmod setpriv:util-linux
}

# need_charon: install charon, which demo and tests run in namespaces: its service stays off.
need_charon() {
    local apt_options=(--no-install-recommends)
    if ! [ -e /usr/sbin/charon-systemd ]; then
        need_packages none-such:charon-systemd
        as_root systemctl disable --quiet --now strongswan.service 2>/dev/null || true
    fi
    need_packages swanctl:strongswan-swanctl \
        /usr/lib/ipsec/plugins/libstrongswan-openssl.so:libstrongswan-standard-plugins
}

# need_ike: install what the tests of IKE need. Debian 13's charon is only unpacked.
need_ike() {
    local apt_options=(--no-install-recommends)
    need_charon
    need_packages pki:strongswan-pki cc:gcc curl:curl bzip2:bzip2 \
        /usr/include/jansson.h:libjansson-dev
    need_debian
}

# need_debian: install the packages that make Debian's userlands for machines with systemd.
need_debian() {
    local apt_options=(--no-install-recommends)
    need_packages mmdebstrap:mmdebstrap mkfs.ext4:e2fsprogs \
        /usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring
}

# Print a python3 of version 3.11 or newer that can create virtual environments.
find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
        if command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
                2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

# make_venv EXTRAS: install the package in editable mode into the checkout's .venv.
make_venv() {
    local extras=$1 python stamp=$venv/.installed wanted
    python=$(find_python) || {
        need_packages "none-such:python3-venv"
        python=$(find_python) || {
            say "error: esp_gw needs Python 3.11 or newer, as in Debian 12 and Raspberry Pi OS 12"
            exit 1
        }
    }
    wanted="$extras $("$python" --version) $(sha256sum "$root/pyproject.toml")"
    if [ -e "$stamp" ] && { [ "$(cat "$stamp")" = "$wanted" ] ||
        # The development environment has all that a plain one has.
        [ "$(cat "$stamp")" = "[dev]$wanted" ]; }; then return; fi
    say "installing the Python package into ${venv#"$PWD"/}"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$root$extras" >&2
    # lab/ is never installed: only this environment finds it.
    printf '%s\n' "$root" >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/checkout.pth"
    printf '%s' "$wanted" >"$stamp"
}

# The ledger is bound to the machine's id, which a bare container lacks.
need_machine_id() {
    if [ -s /etc/machine-id ]; then return; fi
    say "creating /etc/machine-id"
    if command -v systemd-machine-id-setup >/dev/null; then
        as_root systemd-machine-id-setup >&2
    else
        tr -d - </proc/sys/kernel/random/uuid | as_root tee /etc/machine-id >/dev/null
    fi
}

need_tun() {
    if [ -e /dev/net/tun ]; then return; fi
    as_root modprobe tun 2>/dev/null || true
    if [ ! -e /dev/net/tun ]; then
        say "error: there is no /dev/net/tun, and 'modprobe tun' does not help"
        exit 1
    fi
}

# Report why there is no native engine, unless there is a Rust toolchain that can build it.
has_rust() {
    local rust
    rust=$(rustc --version 2>/dev/null | cut -d' ' -f2) || true
    if [ -z "$rust" ] || ! command -v cargo >/dev/null; then
        say "no Rust toolchain: using the python engine"
        return 1
    fi
    if [ "$(printf '%s\n' 1.85 "$rust" | sort -V | head -n 1)" != 1.85 ]; then
        say "rustc $rust is older than 1.85: using the python engine"
        return 1
    fi
}

# make_native: build the native engine into .venv, or report that there is no Rust toolchain.
make_native() {
    local stamp=$venv/.native wanted
    has_rust || return 0
    need_packages cc:gcc make:make
    # OpenSSL's build needs Perl modules beyond the base system's.
    perl -MFindBin -MIPC::Cmd -e 1 2>/dev/null || need_packages none-such:perl
    wanted=$(find "$root/crates" \( -path "$root/crates/target" -o -name .mypy_cache \) -prune \
        -o -type f -print0 |
        sort -z | xargs -0 sha256sum | sha256sum)
    if [ -e "$stamp" ] && { [ "$(cat "$stamp")" = "$wanted" ] ||
        # The development environment has all that a plain one has.
        [ "$(cat "$stamp")" = "[dev]$wanted" ]; }; then return; fi
    say "building the native engine; the first build takes some minutes, mostly for OpenSSL and AWS-LC"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$root/crates/esp-py" >&2
    printf '%s' "$wanted" >"$stamp"
}
