#!/usr/bin/env bash
#
# tests/vm/build.sh KERNEL ROOT: what a guest of these two Debian releases needs, made where it is missing, in
# $NETTOP_VM_CACHE (~/.cache/nettop-vm).  KERNEL's stock kernel (bookworm, trixie, trixie-backports, sid), ROOT's Python,
# BCC and tools (bookworm, trixie, sid): they may differ.  ARCH=arm64 for that machine's.  Prints the two directories.
# A minute each, half a gigabyte kept; needs root and Debian's tools.
#
# Nothing here is run from outside Debian's archive, whose signatures are checked, and PyPI.

set -euo pipefail
here=$(cd "${BASH_SOURCE[0]%/*}" && pwd -P)
root=${here%/tests/vm}
cache=${NETTOP_VM_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/nettop-vm}
python=$root/.venv/bin/python
arch=${ARCH:-amd64}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
PATH=$PATH:/usr/sbin:/sbin

packages=(
	kmod iproute2 iputils-ping iperf3 ethtool procps python3 python3-bpfcc busybox tcpdump dnsmasq-base
)
if [[ $arch != amd64 ]]; then
	packages+=(gcc libc6-dev) # the lab's C programs, which the host compiles for itself alone
	# What is essential comes by itself only where it is installed, and there it is unpacked.
	packages+=(base-files base-passwd bash coreutils dash findutils grep gzip hostname libc-bin mount sed tar util-linux)
fi
# Of the kernel's modules only these, and what they depend on.
modules=(
	virtio_pci virtio_blk ext4 9p 9pnet_virtio
	virtio_net e1000 veth tun dummy ifb bridge 8021q vxlan
	bonding team macvlan ipvlan geneve ip_gre ip6_gre ipip sit ip6_tunnel wireguard pppoe ppp_async
	sch_ingress cls_bpf cls_matchall sch_netem sch_tbf sch_fq_codel sch_fq sch_htb act_gact act_mirred
	sch_cake sch_codel sch_pie sch_fq_pie sch_taprio sch_prio sch_sfq sch_red sch_hfsc sch_drr sch_mqprio
	vrf macsec
	nf_tables nft_chain_nat nf_conntrack sctp tcp_bbr
)
declare -A machines=([amd64]=x86_64 [arm64]=aarch64)
early=(virtio_pci virtio_blk ext4 9p 9pnet_virtio) # before the root is mounted

die() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

say() {
	printf 'vm: %s\n' "$*" >&2
}

# The mirror that this host uses, so that a cache or a proxy near it is used too.
mirror() {
	local uri=''
	[[ -z ${NETTOP_VM_MIRROR-} ]] || { echo "$NETTOP_VM_MIRROR" && return; }
	uri=$(sed -n 's/^URIs: *\([^ ]*\/debian\)\/\{0,1\}$/\1/p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -n 1)
	echo "${uri:-http://deb.debian.org/debian}"
}

# sources SUITE: lines of a sources.list, with the security updates; of backports, those of their release too.
sources() {
	local uri release=${1%-backports} stale=''
	local -a lines
	uri=$(mirror)
	lines=("$keyring" "$uri" "$1")
	[[ $release == "$1" ]] || lines+=("$keyring" "$uri" "$release")
	[[ $release == sid ]] ||
		lines+=("$keyring" "$uri" "$release-updates" "$keyring" "$uri-security" "$release-security")
	# Unstable's list is valid for a week, and a mirror that stands still for longer is good enough for it alone.
	[[ $release != sid ]] || stale=' check-valid-until=no'
	printf "deb [signed-by=%s$stale] %s %s main\\n" "${lines[@]}"
}

# fetch_kernel SUITE DIRECTORY: the kernel and a busybox, unpacked there.
fetch_kernel() {
	local suite=$1 into=$2 work image deb
	local -a apt parts
	work=$(mktemp -d "$scratch/apt.XXXX")
	mkdir -p "$work"/{lists/partial,archives/partial} "$into"
	touch "$work/status"
	sources "$suite" >"$work/sources.list"
	apt=(-qq
		-o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::preferencesparts=/dev/null
		-o "Dir::State::status=$work/status" -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work"
		-o "Dir::Cache::archives=$work/archives" -o "APT::Architecture=$arch" -o "APT::Architectures=$arch"
		-o Acquire::Languages=none -o APT::Sandbox::User=root -o "APT::Default-Release=$suite")
	apt-get "${apt[@]}" update >&2
	image=$(depends "linux-image-$arch" 'linux-image-[0-9]')
	[[ $image ]] || die "$suite names no kernel"
	# Since 7 a kernel comes in parts: vmlinuz, the modules and their lists are packages of their own.
	mapfile -t parts < <(depends "${image%%$'\n'*}" 'linux-(base|binary|modules)-[0-9]')
	(cd "$work" && apt-get "${apt[@]}" download "${image%%$'\n'*}" "${parts[@]}" busybox-static >&2)
	for deb in "$work"/*.deb; do
		dpkg-deb -x "$deb" "$into"
	done
}

# depends PACKAGE PATTERN: those that it depends on; with fetch_kernel's apt.
depends() {
	apt-cache "${apt[@]}" depends "$1" | sed -nE "s/^ *Depends: *($2[^ ]*)$/\\1/p"
}

# image FILE LABEL DIRECTORY MEGABYTES: an ext4 image of a directory, without a mount.
image() {
	truncate -s "$4M" "$1"
	mkfs.ext4 -q -F -L "$2" -O ^has_journal -E lazy_itable_init=1 -m 0 -d "$3" "$1"
}

# Kernel, initial RAM disk, and its modules as a disk of their own: any root can be booted with it.
build_kernel() {
	local suite=$1 into=$2 tree=$scratch/kernel lib release name line first=$scratch/initrd
	fetch_kernel "$suite" "$tree"
	lib=$tree/lib/modules
	[[ -d $lib ]] || lib=$tree/usr/lib/modules
	release=$(ls "$lib")
	find "$lib" -name '*.ko.xz' -exec unxz {} +
	find "$lib" -name '*.ko.zst' -exec unzstd --rm -q {} +
	# depmod and modprobe look below lib/modules of the directory that they are given.
	mkdir -p "$scratch/all/lib"
	mv "$lib" "$scratch/all/lib/modules"
	depmod -b "$scratch/all" "$release"

	mkdir -p "$scratch/kept" "$first/modules"
	for name in "${modules[@]}"; do
		while read -ra line; do # "insmod PATH"; "builtin NAME"
			[[ ${line[0]-} == insmod ]] || continue
			name=${line[1]#"$scratch/all/lib/modules/"}
			install -D -m 644 "${line[1]}" "$scratch/kept/$name"
		done < <(modprobe -d "$scratch/all" -S "$release" --show-depends "$name" 2>/dev/null)
	done
	cp "$scratch/all/lib/modules/$release"/modules.{builtin,builtin.modinfo,order} "$scratch/kept/$release/"
	mkdir -p "$scratch/depmod/lib"
	ln -s "$scratch/kept" "$scratch/depmod/lib/modules"
	depmod -b "$scratch/depmod" "$release"

	for name in "${early[@]}"; do
		while read -ra line; do
			[[ ${line[0]-} == insmod ]] || continue
			[[ -e $first/modules/${line[1]##*/} ]] || echo "${line[1]##*/}" >>"$first/order"
			cp "${line[1]}" "$first/modules/"
		done < <(modprobe -d "$scratch/all" -S "$release" --show-depends "$name" 2>/dev/null)
	done
	install -D "$(find "$tree" -path '*bin/busybox' -type f)" "$first/bin/busybox"
	install -m 755 "$here/early-init" "$first/init"
	mkdir -p "$first"/{proc,sys,dev,root}
	(cd "$first" && find . | cpio --quiet -o -H newc | gzip -1) >"$into/initrd"

	# Since 7 it lies with the modules.
	find "$tree" "$scratch/all" -name 'vmlinuz*' -type f -exec cp {} "$into/vmlinuz" \;
	[[ -s $into/vmlinuz ]] || die "no vmlinuz in $suite's packages"
	image "$into/modules.img" modules "$scratch/kept" $(($(du -sm "$scratch/kept" | cut -f 1) + 12))
	echo "$release" >"$into/release"
}

# Debian without documentation, BCC from it, and nettop's other dependencies from PyPI as pyproject.toml bounds them.
build_root() {
	local suite=$1 into=$2 tree=$scratch/root version
	local -a needs=() foreign=() platform=()
	sources "$suite" >"$scratch/sources.list"
	# Another machine's packages are unpacked, and nothing of theirs is run.
	if [[ $arch != amd64 ]]; then
		foreign=(--variant=extract)
		platform=(--platform "manylinux_2_28_${machines[$arch]}" --platform "manylinux2014_${machines[$arch]}")
	fi
	mmdebstrap --quiet --mode=root --variant=minbase "${foreign[@]}" --architectures="$arch" --include="${packages[*]}" \
		--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' --skip=cleanup/reproducible \
		"$suite" "$tree" "$scratch/sources.list" >&2
	rm -rf "$tree"/var/cache/apt/* "$tree"/var/lib/apt/lists/*
	version=$(basename "$(readlink "$tree/usr/bin/python3")")
	mapfile -t needs < <(requirements)
	"$python" -I -m pip install --quiet --disable-pip-version-check --no-input --no-compile --only-binary=:all: \
		--python-version "${version#python}" "${platform[@]}" \
		--target "$tree/usr/local/lib/$version/dist-packages" "${needs[@]}" >&2
	if [[ $arch == amd64 ]]; then
		chroot "$tree" python3 -m compileall -q "/usr/local/lib/$version/dist-packages" >/dev/null || true
	else
		cp "$tree/usr/share/base-passwd/passwd.master" "$tree/etc/passwd"
		cp "$tree/usr/share/base-passwd/group.master" "$tree/etc/group"
		ln -sf dash "$tree/usr/bin/sh"
	fi
	# Mount points, and what a network test wants of a host.
	mkdir -p "$tree"/{out,proc,sys,dev,run,tmp} "$tree/usr/lib/modules"
	echo guest >"$tree/etc/hostname"
	printf '127.0.0.1 localhost guest\n::1 localhost\n' >"$tree/etc/hosts"
	image "$into/root.img" root "$tree" 1200
}

# What pyproject.toml says that nettop needs, pytest, and what tests in guests use; no Textual: a guest has no screen.
requirements() {
	"$python" -I - "$root/pyproject.toml" <<-'PYTHON'
		import sys, tomllib
		project = tomllib.load(open(sys.argv[1], "rb"))["project"]
		wanted = [*project["dependencies"], *(p for p in project["optional-dependencies"]["test"] if p.startswith(("pytest>", "pyroute2")))]
		print(*(p for p in wanted if not p.startswith("textual")), sep="\n")
	PYTHON
}

# key KIND: another recipe makes other images.  Of the functions' text as bash has it, so without comments.
key() {
	{
		echo "$arch"
		declare -f sources image "build_$1"
		if [[ $1 == root ]]; then
			declare -p packages
			requirements
		else
			declare -f fetch_kernel depends
			declare -p modules early
			cat "$here/early-init"
		fi
	} | sha256sum | cut -c 1-12
}

# ready KIND SUITE: the directory, built if need be.
ready() {
	local kind=$1 suite=$2 name start=$SECONDS
	name=$kind-$suite$([[ $arch == amd64 ]] || echo "-$arch")-$(key "$kind")
	if [[ ! -e $cache/$name ]]; then
		((EUID == 0)) || die "making an image needs root"
		say "building $name in $cache"
		scratch=$(mktemp -d "$cache/unfinished.XXXX")
		mkdir "$scratch/done"
		"build_$kind" "$suite" "$scratch/done"
		find "$cache" -maxdepth 1 -regex ".*/${name%-*}-[0-9a-f]*" -exec rm -rf {} + # of an older recipe
		mv "$scratch/done" "$cache/$name"
		rm -rf "$scratch"
		scratch=
		say "$name: $((SECONDS - start)) s, $(du -sh "$cache/$name" | cut -f 1)"
	fi
	echo "$cache/$name"
}

[[ $# -eq 2 ]] || die "usage: tests/vm/build.sh KERNEL ROOT"
[[ ${machines[$arch]-} ]] || die "ARCH=$arch is not known"
mkdir -p "$cache"
cache=$(cd "$cache" && pwd -P)
scratch=
trap '[[ ! $scratch ]] || rm -rf "$scratch"' EXIT
exec {lock}<"$cache"
flock "$lock"
rm -rf "$cache"/unfinished.*
ready kernel "$1"
ready root "$2"
