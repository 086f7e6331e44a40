# Shared by the scripts: what a fresh Debian 12 lacks, and how results are told. Sourced, never run.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ROOT=$PWD
TARGET=x86_64-unknown-linux-gnu
PATH=$HOME/.cargo/bin:$PATH

say() { printf '\033[1m== %s\033[0m\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

have() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    [ "$(id -u)" = 0 ] || die "this needs root: it starts VMs, makes mounts and installs packages (use sudo)"
}

apt_updated=
# Installs the packages that are not there yet, in one round.
apt_install() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    have apt-get || die "please install: ${missing[*]}"
    say "installing ${missing[*]}"
    if [ -z "$apt_updated" ]; then
        apt-get update -qq
        apt_updated=1
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

need_rust() {
    have cargo || die "no Rust toolchain: install one with rustup (Debian 12's own is too old; Cargo.toml names the oldest that will do)"
}

# What every VM needs. QEMU first and its tools in a second round: the first may remove newer ones that were there.
need_vm() {
    as_root
    apt_install qemu-system-x86 kmod
    apt_install qemu-utils busybox-static
    scripts/fetch-kernel
}

# What a pod VM's disk image is made with, and UEFI to boot it.
need_disk() {
    as_root
    apt_install mtools dosfstools e2fsprogs syslinux syslinux-common systemd-boot-efi ovmf
}

# The Rust virtiofsd beside QEMU's C one; prints its path. Built in the tree's own target: which one pods get does not change.
rust_virtiofsd() {
    local version=1.14 tools=$ROOT/target/tools
    if ! [ -x "$tools/bin/virtiofsd" ]; then
        apt_install gcc libc6-dev libcap-ng-dev libseccomp-dev
        CARGO_TARGET_DIR=$ROOT/target/tools/build cargo install --quiet --locked --root "$tools" --version "~$version" virtiofsd >&2
        rm -rf "$tools/build"
    fi
    echo "$tools/bin/virtiofsd"
}

# virtme-ng, which runs a command in a VM too; prints where it is, or nothing where it does not install.
virtme_ng() {
    local dir=$ROOT/target/tools/virtme-ng
    if ! [ -x "$dir/bin/vng" ]; then
        apt_install python3-pip
        python3 -m pip install --quiet --target "$dir" virtme-ng==1.42 >&2 || return 0
    fi
    echo "$dir"
}

# The release binary; prints its path.
build_release() {
    need_rust
    apt_install gcc libc6-dev
    cargo build --release --locked >&2
    echo "$ROOT/target/$TARGET/release/osc"
}

# A number of budgets.toml.
budget() {
    sed -n "s/^$1 *= *\([0-9]*\).*/\1/p" budgets.toml
}
