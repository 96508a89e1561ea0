# shellcheck shell=bash
# Shared by the scripts beside it: packages, the virtual environment, root.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv

say() { printf '%s\n' "$*" >&2; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

# need_packages COMMAND:PACKAGE...: installs the Debian packages whose command (or file) is missing.
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
        say "error: no apt-get here: install them by your system's means, then run this again"
        exit 1
    fi
    as_root apt-get update -qq >&2 || true
    if ! as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq "${apt_options[@]}" "${missing[@]}" >&2; then
        say "error: apt-get could not install ${missing[*]}: see above; is there a network?"
        exit 1
    fi
}
apt_options=()

# need_qemu ARCHITECTURE: what scripts/vm needs; without the graphics that Debian recommends with it.
need_qemu() {
    local apt_options=(--no-install-recommends) qemu="qemu-system-x86_64:qemu-system-x86"
    if [ "$1" = aarch64 ]; then qemu="qemu-system-aarch64:qemu-system-arm"; fi
    need_packages "$qemu" depmod:kmod setpriv:util-linux
}

# A python3 of 3.11 or newer that can make virtual environments.
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

# make_venv EXTRAS: the package, in editable form, in .venv of the checkout.
make_venv() {
    local extras=$1 python stamp=$venv/.installed wanted
    python=$(find_python) || {
        need_packages "none-such:python3-venv"
        python=$(find_python) || {
            say "error: esp_gw needs Python 3.11 or newer (Debian 12, Raspberry Pi OS 12 have it)"
            exit 1
        }
    }
    wanted="$extras $("$python" --version) $(sha256sum "$root/pyproject.toml")"
    if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then return; fi
    say "installing the Python package into ${venv#"$PWD"/}"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$root$extras" >&2
    # lab/ is never installed; this environment alone finds it.
    printf '%s\n' "$root" >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/checkout.pth"
    printf '%s' "$wanted" >"$stamp"
}

# The ledger is bound to the machine by its id; a bare container has none yet.
need_machine_id() {
    if [ -s /etc/machine-id ]; then return; fi
    say "giving this machine an id (/etc/machine-id)"
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

# make_native: builds the native engine into .venv where there is a Rust toolchain, and says so where
# there is none.
make_native() {
    local stamp=$venv/.native wanted rust
    rust=$(rustc --version 2>/dev/null | cut -d' ' -f2) || true
    if [ -z "$rust" ] || ! command -v cargo >/dev/null; then
        say "no Rust toolchain here: the python engine is used"
        return
    fi
    if [ "$(printf '%s\n' 1.85 "$rust" | sort -V | head -n 1)" != 1.85 ]; then
        say "rustc $rust is older than 1.85: the python engine is used"
        return
    fi
    need_packages cc:gcc make:make
    # OpenSSL's build needs more of Perl than the base system has.
    perl -MFindBin -MIPC::Cmd -e 1 2>/dev/null || need_packages none-such:perl
    wanted=$(find "$root/crates" -path "$root/crates/target" -prune -o -type f -print0 |
        sort -z | xargs -0 sha256sum | sha256sum)
    if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then return; fi
    say "building the native engine; the first time takes some minutes, most of them for OpenSSL and AWS-LC"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$root/crates/esp-py" >&2
    printf '%s' "$wanted" >"$stamp"
}
