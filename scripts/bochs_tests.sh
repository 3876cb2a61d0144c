#!/usr/bin/env bash
# Runs a test program on an emulated processor that has AVX-512 with VBMI and VNNI (a Tiger
# Lake), which qemu does not emulate, and exits with the program's exit code:
#
#   scripts/bochs_tests.sh [PROGRAM [ARGS...]]
#
# Default: kernels_test of the release build (run `make build` first), its levels avx512 and
# avx512_vbmi. The emulator executes some thirty million instructions a second, so that starting
# takes half a minute and all these tests most of an hour; name fewer, for example
#
#   scripts/bochs_tests.sh build/bin/kernels_test --gtest_filter='*PackedAngles*/avx512_vbmi'
#
# The program sees itself and its libraries under their own paths, and no other file of ours.
#
# Needs apt-get of Debian 12 on x86-64, no root: Bochs, a kernel and what makes a disk of them
# are unpacked in the cache and not installed. Delete the folder bochs there to fetch them anew.
#
# Environment: CQKV_CACHE_DIR (default ~/.cache/cqkv).
set -euo pipefail
cd "$(dirname "$0")/.."

readonly packages=(bochs bochs-term bochsbios vgabios isolinux syslinux-common genisoimage cpio
                   busybox-static)
readonly kernel_package=linux-image-cloud-amd64  # depends on the kernel of the day
readonly marker=cqkv-exit

cache=${CQKV_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/cqkv}
root=$cache/bochs
emulator=

say() { printf 'bochs: %s\n' "$*" >&2; }

# Runs an unpacked program with the unpacked libraries.
unpacked() {  # PROGRAM ARGS...
  LD_LIBRARY_PATH=$root/usr/lib/x86_64-linux-gnu "$root/$1" "${@:2}"
}

# What apt-get would install with the packages: the libraries that this machine lacks.
missing_libraries() {
  apt-get -s install --no-install-recommends "${packages[@]}" | awk '/^Inst / { print $2 }'
}

fetch_packages() {
  [[ ! -d $root ]] || return 0
  mkdir -p "$cache"
  local staging kernel libraries package
  staging=$(mktemp -d "$cache/fetch.XXXXXX")
  mkdir "$staging/root"
  kernel=$(apt-cache depends "$kernel_package" | awk '/Depends: linux-image/ { print $2; exit }')
  libraries=$(missing_libraries)
  [[ -n $kernel ]] || { say "apt knows no package $kernel_package; try apt-get update"; exit 1; }
  say "fetching $kernel, Bochs and the tools they need"
  # As root apt-get would download as a user who may not write here.
  # shellcheck disable=SC2086 # a list of names
  (cd "$staging" && apt-get -q -o APT::Sandbox::User=root download \
    "$kernel" "${packages[@]}" $libraries >fetch.log) || { cat "$staging/fetch.log" >&2; exit 1; }
  for package in "$staging"/*.deb; do
    dpkg -x "$package" "$staging/root"
  done
  # Most of a kernel package are modules, and we load none.
  rm -rf "$staging/root/lib/modules"
  mv "$staging/root" "$root"
  rm -rf "$staging"
}

# Prints the first program of the guest. It must not return: a kernel without it panics.
guest_init() {  # PROGRAM ARGS...
  cat <<EOF
#!/bin/busybox sh
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
run() {
  for flag in avx512vbmi avx512_vnni; do
    busybox grep -qw \$flag /proc/cpuinfo || { echo "the emulated processor lacks \$flag"; return 1; }
  done
  $(printf '%q ' "$@")
}
export TERM=dumb
run
echo "$marker \$?"
busybox sleep 1000000
EOF
}

# A file system in memory with busybox, the program and the libraries that it is linked with.
make_initrd() {  # FOLDER PROGRAM ARGS...
  local tree=$1/tree program=$2 file
  mkdir -p "$tree"/{bin,dev,proc,sys,tmp}
  cp "$root/bin/busybox" "$tree/bin/"
  install -D "$program" "$tree$program"
  # Of lines "name => /path (address)" and "/path (address)" the path.
  for file in $(ldd "$program" | grep -oE '(^|[[:space:]])/[^ ]+'); do
    install -D "$file" "$tree$file"
  done
  guest_init "${@:2}" >"$tree/init"
  chmod +x "$tree/init"
  (cd "$tree" && find . | unpacked bin/cpio --quiet -o -H newc -R 0:0) >"$1/disk/initrd"
}

# A bootable CD. Of the kernel's options, some skip what takes an emulator long. The rest:
# clearcpuid: Bochs 2.7 tells wrong sizes of the state of pku and of the compact form that
#   xsavec and xsaves write, on which the kernel gives up AVX; and it has fsrm without fast
#   strings, with which the kernel's memmove() overruns.
# acpi=off, panic=0: without a way to switch off or to restart; we stop the emulator.
make_disk() {  # FOLDER
  cp "$root/usr/lib/ISOLINUX/isolinux.bin" "$root/usr/lib/syslinux/modules/bios/ldlinux.c32" \
    "$1/disk/"
  cp "$root"/boot/vmlinuz-* "$1/disk/linux"
  local options=(
    'console=ttyS0,115200' loglevel=1 rdinit=/init panic=0 acpi=off
    'clearcpuid=pku,xsavec,xsaves,fsrm'
    nosmp nokaslr mitigations=off lsm= tsc=reliable no_timer_check lpj=80000
  )
  printf '%s\n' 'default linux' 'prompt 0' 'label linux' ' kernel linux' ' initrd initrd' \
    " append ${options[*]}" >"$1/disk/isolinux.cfg"
  unpacked usr/bin/genisoimage -quiet -R -o "$1/disk.iso" -b isolinux.bin -c boot.cat \
    -no-emul-boot -boot-load-size 4 -boot-info-table "$1/disk"
}

# ips is how many instructions make a second for the BIOS, which waits for some, and for the
# timer, whose interrupts take time too.
configure() {  # FOLDER
  cat >"$1/bochsrc" <<EOF
display_library: term
cpu: model=tigerlake, count=1, ips=20000000, reset_on_triple_fault=0, ignore_bad_msrs=1
megs: 512
romimage: file=$root/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=$root/usr/share/bochs/VGABIOS-lgpl-latest
clock: sync=none
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path=$1/disk.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$1/serial.txt
sound: waveoutdrv=dummy
speaker: enabled=0
log: $1/bochs.log
panic: action=fatal
error: action=ignore
info: action=report
debug: action=ignore
EOF
  # Debian's Bochs starts in its debugger.
  echo continue >"$1/commands"
}

# Runs the emulator, prints what the guest writes, and leaves its exit code in `code`.
run_guest() {  # FOLDER
  local line
  code=
  : >"$1/serial.txt"
  # Not with `unpacked`, which would be a shell between the emulator and the signal for it.
  TERM=vt100 BXSHARE=$root/usr/share/bochs LD_LIBRARY_PATH=$root/usr/lib/x86_64-linux-gnu \
    LTDL_LIBRARY_PATH=$root/usr/lib/x86_64-linux-gnu/bochs/plugins \
    "$root/usr/bin/bochs-bin" -q -f "$1/bochsrc" -rc "$1/commands" </dev/null >"$1/screen.txt" 2>&1 &
  emulator=$!
  while IFS= read -r line; do
    line=${line%$'\r'}
    case $line in
      "$marker "*) code=${line#"$marker "}; break ;;
      *"Kernel panic"*) echo "$line"; break ;;
      *) echo "$line" ;;
    esac
  done < <(tail -n +1 -f --pid="$emulator" "$1/serial.txt")
  stop_emulator
  if [[ -z $code ]]; then
    tail -n 20 "$1/screen.txt" "$1/bochs.log" >&2
    say "the guest stopped before the program ended"
    code=1
  fi
}

# SIGTERM would only bring it back to its debugger.
stop_emulator() {
  [[ -n $emulator ]] || return 0
  kill -KILL "$emulator" 2>/dev/null || true
  wait "$emulator" 2>/dev/null || true
  emulator=
}

# shellcheck disable=SC2317 # the trap calls it
cleanup() {
  stop_emulator
  rm -rf "$work"
}

if [[ $# == 0 ]]; then
  set -- build/bin/kernels_test '--gtest_filter=*/avx512*'
  want='OK.*/avx512_vbmi'  # a filter that matches nothing passes too
fi
[[ -x $1 ]] || { say "no program $1; run make build first"; exit 1; }
program=$(realpath "$1")
shift

fetch_packages
work=$(mktemp -d)
trap cleanup EXIT
mkdir "$work/disk"
make_initrd "$work" "$program" "$@"
make_disk "$work"
configure "$work"
run_guest "$work"
if [[ $code == 0 && -n ${want:-} ]] && ! grep -q "$want" "$work/serial.txt"; then
  say "got no tests of level avx512_vbmi, want some"
  code=1
fi
exit "$code"
