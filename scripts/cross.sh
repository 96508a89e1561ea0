# shellcheck shell=bash
# Shared by the scripts that also build for aarch64: Debian's Rust and its cross compiler.
# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

rust=$root/crates/target/debian-rust

# need_cross: install the toolchain that builds for x86_64 and aarch64 and links Python extensions.
# Rust goes into a separate folder: the host's may be rustup's, which can't use Debian's library for
# aarch64, and whose packages conflict with Debian's.
need_cross() {
    if [ "$(uname -m)" != x86_64 ]; then
        say "error: this script needs an x86_64 host; on a Pi itself, run 'pip install ./crates/esp-py'"
        exit 1
    fi
    local apt_options=(--no-install-recommends)
    need_packages cc:gcc make:make aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu \
        /usr/aarch64-linux-gnu/include/stdio.h:libc6-dev-arm64-cross
    # OpenSSL's build needs Perl modules beyond the base system's.
    perl -MFindBin -MIPC::Cmd -e 1 2>/dev/null || need_packages none-such:perl
    need_debian_rust
    export PATH=$rust/usr/bin:$PATH
    export LD_LIBRARY_PATH=$rust/usr/lib/x86_64-linux-gnu
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    export CARGO_TARGET_DIR=$root/crates/target/wheels
    # These would select another compiler or other flags.
    unset RUSTC RUSTC_WRAPPER RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET RUSTUP_TOOLCHAIN
}

need_debian_rust() {
    if [ -e "$rust/complete" ]; then return; fi
    say "fetching Debian's Rust for x86_64 and aarch64 into ${rust#"$PWD"/}"
    local work=$rust.new
    rm -rf "$rust" "$work"
    mkdir -p "$work"/{lists/partial,archives/partial,arm64,unpacked}
    if ! (cd "$work" && fetch_rust >"$work/log" 2>&1); then
        say "error: can't fetch Debian's Rust: $(grep -m 1 '^E: ' "$work/log" || tail -n 1 "$work/log")"
        exit 1
    fi
    touch "$work/unpacked/complete"
    mv "$work/unpacked" "$rust"
    rm -r "$work"
}

# fetch_rust: unpack the packages into unpacked/. apt works in this folder with the host's sources. Its
# dpkg status lists no Rust, so that it also fetches packages that the host has installed.
fetch_rust() {
    local package options=(
        -q -o "Dir::State=$PWD" -o "Dir::State::status=$PWD/status" -o "Dir::Cache=$PWD"
        -o APT::Architecture=amd64 -o APT::Architectures::=amd64 -o APT::Architectures::=arm64
        -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=1
        -o Debug::NoLocking=true
    )
    awk -v RS= -v ORS='\n\n' '!/^Package: (cargo|libstd-rust|rust)/' /var/lib/dpkg/status >status
    apt-get "${options[@]}" -o APT::Update::Error-Mode=any update || return
    # The package of Rust that Debian keeps up to date, for web browsers.
    apt-get "${options[@]}" --download-only --no-install-recommends -y \
        install rustc-web:amd64 cargo-web:amd64 || return
    (cd arm64 && apt-get "${options[@]}" download libstd-rust-web-dev:arm64) || return
    for package in archives/*.deb arm64/*.deb; do
        dpkg-deb -x "$package" unpacked || return
    done
    LD_LIBRARY_PATH=unpacked/usr/lib/x86_64-linux-gnu unpacked/usr/bin/rustc --version
}
