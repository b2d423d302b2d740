#!/usr/bin/env bash
#
# tests/vm/build.sh KERNEL ROOT: what a guest of these two Debian releases needs (bookworm, trixie), made where it is
# missing, in $NETTOP_VM_CACHE (~/.cache/nettop-vm).  KERNEL's stock kernel, ROOT's Python, BCC and tools: they may
# differ.  Prints the two directories.  A minute each, half a gigabyte kept; needs root and Debian's tools.
#
# Nothing here is run from outside Debian's archive, whose signatures are checked, and PyPI.

set -euo pipefail
here=$(cd "${BASH_SOURCE[0]%/*}" && pwd -P)
root=${here%/tests/vm}
cache=${NETTOP_VM_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/nettop-vm}
python=$root/.venv/bin/python
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
PATH=$PATH:/usr/sbin:/sbin

packages=(
	kmod iproute2 iputils-ping iperf3 ethtool procps python3 python3-bpfcc busybox tcpdump dnsmasq-base
)
# Of the kernel's modules only these, and what they depend on.
modules=(
	virtio_pci virtio_blk ext4 9p 9pnet_virtio
	virtio_net e1000 veth tun dummy ifb bridge 8021q vxlan
	sch_ingress cls_bpf cls_matchall sch_netem sch_tbf sch_fq_codel sch_fq sch_htb act_gact act_mirred
	nf_tables nft_chain_nat nf_conntrack sctp tcp_bbr
)
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

# sources SUITE: lines of a sources.list, with the security updates.
sources() {
	local uri
	uri=$(mirror)
	printf 'deb [signed-by=%s] %s %s main\n' \
		"$keyring" "$uri" "$1" "$keyring" "$uri" "$1-updates" "$keyring" "$uri-security" "$1-security"
}

# fetch SUITE DIRECTORY PACKAGE...: the packages, unpacked there; "linux-image-amd64" stands for the kernel it names.
fetch() {
	local suite=$1 into=$2 work package deb
	shift 2
	work=$(mktemp -d "$scratch/apt.XXXX")
	mkdir -p "$work"/{lists/partial,archives/partial} "$into"
	touch "$work/status"
	sources "$suite" >"$work/sources.list"
	local -a apt=(-qq
		-o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::preferencesparts=/dev/null
		-o "Dir::State::status=$work/status" -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work"
		-o "Dir::Cache::archives=$work/archives" -o APT::Architecture=amd64 -o APT::Architectures=amd64
		-o Acquire::Languages=none -o APT::Sandbox::User=root)
	apt-get "${apt[@]}" update >&2
	for package; do
		if [[ $package == linux-image-amd64 ]]; then
			package=$(apt-cache "${apt[@]}" depends "$package" | sed -n 's/^ *Depends: *\(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1)
			[[ $package ]] || die "$suite names no kernel"
		fi
		(cd "$work" && apt-get "${apt[@]}" download "$package" >&2)
	done
	for deb in "$work"/*.deb; do
		dpkg-deb -x "$deb" "$into"
	done
}

# image FILE LABEL DIRECTORY MEGABYTES: an ext4 image of a directory, without a mount.
image() {
	truncate -s "$4M" "$1"
	mkfs.ext4 -q -F -L "$2" -O ^has_journal -E lazy_itable_init=1 -m 0 -d "$3" "$1"
}

# Kernel, initial RAM disk, and its modules as a disk of their own: any root can be booted with it.
build_kernel() {
	local suite=$1 into=$2 tree=$scratch/kernel lib release name line first=$scratch/initrd
	fetch "$suite" "$tree" linux-image-amd64 busybox-static
	lib=$tree/lib/modules
	[[ -d $lib ]] || lib=$tree/usr/lib/modules
	release=$(ls "$lib")
	find "$lib" -name '*.ko.xz' -exec unxz {} +
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

	install -m 644 "$tree/boot/vmlinuz-$release" "$into/vmlinuz"
	image "$into/modules.img" modules "$scratch/kept" $(($(du -sm "$scratch/kept" | cut -f 1) + 12))
	echo "$release" >"$into/release"
}

# Debian without documentation, BCC from it, and nettop's other dependencies from PyPI as pyproject.toml bounds them.
build_root() {
	local suite=$1 into=$2 tree=$scratch/root version
	local -a needs=()
	sources "$suite" >"$scratch/sources.list"
	mmdebstrap --quiet --mode=root --variant=minbase --architectures=amd64 --include="${packages[*]}" \
		--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' --skip=cleanup/reproducible \
		"$suite" "$tree" "$scratch/sources.list" >&2
	rm -rf "$tree"/var/cache/apt/* "$tree"/var/lib/apt/lists/*
	version=$(basename "$(readlink -f "$tree/usr/bin/python3")")
	mapfile -t needs < <(requirements)
	"$python" -I -m pip install --quiet --disable-pip-version-check --no-input --no-compile --only-binary=:all: \
		--python-version "${version#python}" --target "$tree/usr/local/lib/$version/dist-packages" "${needs[@]}" >&2
	chroot "$tree" python3 -m compileall -q "/usr/local/lib/$version/dist-packages" >/dev/null || true
	# Mount points, and what a network test wants of a host.
	mkdir -p "$tree/out" "$tree/usr/lib/modules"
	echo guest >"$tree/etc/hostname"
	printf '127.0.0.1 localhost guest\n::1 localhost\n' >"$tree/etc/hosts"
	image "$into/root.img" root "$tree" 1200
}

# What pyproject.toml says that nettop needs, and pytest; no Textual: a guest has no screen.
requirements() {
	"$python" -I - "$root/pyproject.toml" <<-'PYTHON'
		import sys, tomllib
		project = tomllib.load(open(sys.argv[1], "rb"))["project"]
		wanted = [*project["dependencies"], *(p for p in project["optional-dependencies"]["test"] if p.startswith("pytest>"))]
		print(*(p for p in wanted if not p.startswith("textual")), sep="\n")
	PYTHON
}

# key KIND: another text of this recipe makes other images.
key() {
	{
		cat "$here/build.sh"
		if [[ $1 == root ]]; then requirements; else cat "$here/early-init"; fi
	} | sha256sum | cut -c 1-12
}

# ready KIND SUITE: the directory, built if need be.
ready() {
	local kind=$1 suite=$2 name start=$SECONDS
	name=$kind-$suite-$(key "$kind")
	if [[ ! -e $cache/$name ]]; then
		((EUID == 0)) || die "making an image needs root"
		say "building $name in $cache"
		scratch=$(mktemp -d "$cache/unfinished.XXXX")
		mkdir "$scratch/done"
		"build_$kind" "$suite" "$scratch/done"
		rm -rf "$cache/$kind-$suite"-* # of an older recipe
		mv "$scratch/done" "$cache/$name"
		rm -rf "$scratch"
		scratch=
		say "$name: $((SECONDS - start)) s, $(du -sh "$cache/$name" | cut -f 1)"
	fi
	echo "$cache/$name"
}

[[ $# -eq 2 ]] || die "usage: tests/vm/build.sh KERNEL ROOT   (bookworm, trixie)"
mkdir -p "$cache"
cache=$(cd "$cache" && pwd -P)
scratch=
trap '[[ ! $scratch ]] || rm -rf "$scratch"' EXIT
exec {lock}<"$cache"
flock "$lock"
rm -rf "$cache"/unfinished.*
ready kernel "$1"
ready root "$2"
