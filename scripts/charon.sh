# shellcheck shell=bash
# Shared by the scripts that build and install plugins of charon: its version, its source, their notes.
# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Sums of files in an order, and words of other programs, are the same in every language.
export LC_ALL=C

charon_out=$root/strongswan/out
# SHA-256 of the upstream archives that Debian 12 and 13 build their packages of, and their places.
declare -A charon_sums=(
    [5.9.8]=d3303a43c0bd7b75a12b64855e8edcb53696f06190364f26d1533bde1f2e453c
    [6.0.1]=212368cbc674fed31f3292210303fff06da8b90acad2d1387375ed855e6879c4
)
charon_places=(
    http://deb.debian.org/debian/pool/main/s/strongswan
    http://deb.debian.org/debian-security/pool/updates/main/s/strongswan
    https://download.strongswan.org
)

fail() {
    say "error: $1"
    exit 1
}

# installed_charon: print the upstream version of the charon that is installed, or fail.
installed_charon() {
    dpkg-query --show --showformat '${db:Status-Status} ${Version}\n' libstrongswan 2>/dev/null |
        sed -n 's/^installed \([^-]*\).*/\1/p' | grep --max-count 1 .
}

is_known_charon() { [ -n "${charon_sums[${1:-none}]-}" ]; }

# lacks_ml VERSION: true where Debian's packages leave out the plugin ml, which this version has. 5.9.8
# has none; from 6.0.2 on the plugin openssl does the same.
lacks_ml() { [ "$1" = 6.0.1 ]; }

# need_charon_source VERSION: have the source that plugins need in $charon_source.
need_charon_source() {
    charon_source=$charon_out/source-$1
    if [ -d "$charon_source" ]; then return; fi
    need_packages curl:curl bzip2:bzip2
    mkdir -p "$charon_out"
    charon_work=$(mktemp -d "$charon_out/fetch.XXXXXX")
    trap 'rm -rf "$charon_work"' EXIT
    fetch_charon "$1"
    mkdir "$charon_work/source"
    tar --extract --file "$charon_work/archive" --directory "$charon_work/source" \
        --strip-components 1 --wildcards '*/src/libstrongswan/*.[ch]' '*/src/libcharon/*.h'
    # Another build may have been quicker.
    mv --no-target-directory "$charon_work/source" "$charon_source" 2>/dev/null || [ -d "$charon_source" ]
    rm -rf "$charon_work"
    trap - EXIT
}

# fetch_charon VERSION: download the archive from the first place that has the right one.
fetch_charon() {
    local place name found=()
    for place in "${charon_places[@]}"; do
        name=strongswan_$1.orig.tar.bz2
        if [[ $place == https://download.* ]]; then name=strongswan-$1.tar.bz2; fi
        if ! curl --fail --silent --location --max-time 120 --output "$charon_work/archive" "$place/$name"; then
            found+=("none at $place")
        elif echo "${charon_sums[$1]}  $charon_work/archive" | sha256sum --check --status; then
            return
        else
            found+=("another one at $place")
        fi
    done
    fail "no source of strongswan $1 ($(IFS=, && echo "${found[*]}")): check the network, or unpack it into $charon_source"
}

# plugin_note NAME VERSION: print the note that a plugin carries, by which an installation is checked.
plugin_note() {
    local sources
    sources=$(cat "$root"/strongswan/*.[ch] "$root"/scripts/{charon.sh,build-ike-plugin,build-ike-ml} |
        sha256sum | head --bytes 16)
    printf 'esp_gw: %s for charon %s, sources %s' "$1" "$2" "$sources"
}

# plugin_note_source NAME VERSION: print a C file with that note.
plugin_note_source() {
    printf '__attribute__((used)) static const char note[] = "%s";\n' "$(plugin_note "$1" "$2")"
}

# read_plugin_note FILE: print the note in a plugin; nothing if it has none.
read_plugin_note() {
    grep --text --only-matching 'esp_gw: [a-z-]* for charon [0-9.]*, sources [0-9a-f]*' "$1" 2>/dev/null || true
}

# is_built FILE NOTE: true if a file is the plugin with this note, for the programs of this machine.
is_built() {
    [ -e "$1" ] && [ "$(read_plugin_note "$1")" = "$2" ] &&
        [ "$(elf_machine "$1")" = "$(elf_machine "$BASH")" ]
}

# elf_machine FILE: print class, byte order and machine of an ELF file (elf(5)).
elf_machine() {
    od -An -tx1 -j4 -N2 "$1"
    od -An -tx1 -j18 -N2 "$1"
}
