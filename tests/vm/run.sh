#!/usr/bin/env bash
#
# tests/vm/run.sh KERNEL ROOT 'COMMAND': the command in a guest, as root, in a copy of this checkout; its exit status.
# 124: over the time limit; 125: the guest never came to the command's end.
#
#   OUT=DIR      what the guest finds as /out, to leave results in (a temporary one, thrown away)
#   LIMIT=300    seconds
#   NIC=none     none; hub: two virtio NICs joined by a cable (eth0, eth1); e1000: the same of that kind
#   MEMORY=1536  megabytes
#   ACCEL=tcg,thread=multi   kvm where it can be trusted
#   CPU=max,avx=off          QEMU 7.2 loses AVX registers now and then: numpy died of it in one run of four
#
# The guest has no way out: no network but its own, and a root disk whose changes are thrown away.

set -euo pipefail
here=$(cd "${BASH_SOURCE[0]%/*}" && pwd -P)
root=${here%/tests/vm}

[[ $# -eq 3 ]] || {
	echo "usage: tests/vm/run.sh KERNEL ROOT COMMAND   (bookworm, trixie)" >&2
	exit 2
}
made=$("$here/build.sh" "$1" "$2")
kernel=${made%$'\n'*}
system=${made#*$'\n'}

share=${OUT-}
[[ $share ]] || share=$(mktemp -d)
trap '[[ ${OUT-} ]] || rm -rf "$share"' EXIT
mkdir -p "$share"
share=$(cd "$share" && pwd -P)
rm -f "$share/status"
install -m 755 "$here/init" "$share/init"
printf '%s\n' "$3" >"$share/command"
payload=(nettop bpf_src tests pyproject.toml)
tar -C "$root" --exclude __pycache__ -cf "$share/payload.tar" "${payload[@]}"
# The lab's own C programs: a guest has no compiler.
[[ ! -d /var/cache/nettop-lab ]] || tar -C /var/cache -rf "$share/payload.tar" nettop-lab

nic=()
case ${NIC-none} in
none) ;;
hub | e1000)
	[[ $NIC == hub ]] && model=virtio-net-pci || model=e1000
	for number in 0 1; do
		nic+=(-netdev "hubport,id=port$number,hubid=0")
		nic+=(-device "$model,netdev=port$number,mac=52:54:00:4e:54:0$number")
	done
	;;
*)
	echo "run.sh: NIC=$NIC is not known" >&2
	exit 2
	;;
esac

qemu=(
	qemu-system-x86_64 -accel "${ACCEL:-tcg,thread=multi,tb-size=512}" -M q35 -cpu "${CPU:-max,la57=off,avx=off,avx2=off}"
	-smp 2 -m "${MEMORY:-1536}" -nodefaults -no-user-config -display none -monitor none -serial stdio -no-reboot
	-kernel "$kernel/vmlinuz" -initrd "$kernel/initrd"
	-append 'console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable audit=0 apparmor=0 random.trust_cpu=on net.ifnames=0'
	-drive "file=$system/root.img,format=raw,if=virtio,snapshot=on,cache=unsafe"
	-drive "file=$kernel/modules.img,format=raw,if=virtio,readonly=on"
	-virtfs "local,path=$share,mount_tag=out,security_model=none"
	"${nic[@]}"
)
# The serial line has no end of file to give the guest, and its carriage returns are of no use.
code=0
timeout --foreground -k 5 "${LIMIT:-300}" nice -n 10 "${qemu[@]}" </dev/null | tr -d '\r' || code=$?
((code != 124 && code != 137)) || exit 124
[[ -s $share/status ]] || exit 125
exit "$(<"$share/status")"
