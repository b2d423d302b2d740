#!/usr/bin/env bash
#
# tests/vm/run.sh KERNEL ROOT 'COMMAND': the command in a guest, as root, in a copy of this checkout; its exit status.
# 124: over the time limit; 125: the guest never came to the command's end.
#
#   OUT=DIR      what the guest finds as /out, to leave results in (a temporary one, thrown away)
#   LIMIT=300    seconds
#   NIC=none     none; cards: two virtio NICs joined by a cable (52:54:00:4e:54:00 and 01), an e1000 and a virtio NIC
#                (10 and 11), and an e1000 alone (20) that shares the other's interrupt line
#   MEMORY=1536  megabytes
#   ACCEL=tcg,thread=single  kvm where it can be trusted.  With a thread for each CPU QEMU 7.2 runs code that the guest
#                has changed meanwhile (tracepoints do that) in its old form, and now and then for ever
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
watchdog=
trap '[[ ! $watchdog ]] || kill "$watchdog" 2>/dev/null || true; [[ ${OUT-} ]] || rm -rf "$share"' EXIT
mkdir -p "$share"
share=$(cd "$share" && pwd -P)
rm -f "$share"/{status,monitor.in,monitor.out}
install -m 755 "$here/init" "$share/init"
printf '%s\n' "$3" >"$share/command"
payload=(nettop bpf_src tests pyproject.toml)
tar -C "$root" --exclude __pycache__ -cf "$share/payload.tar" "${payload[@]}"
# The lab's own C programs: a guest has no compiler.
[[ ! -d /var/cache/nettop-lab ]] || tar -C /var/cache -rf "$share/payload.tar" nettop-lab

# card HUB END MODEL SLOT: a NIC, and the cable that it is at.
card() {
	nic+=(-netdev "hubport,id=port$1$2,hubid=$1" -device "$3,netdev=port$1$2,mac=52:54:00:4e:54:$1$2,addr=$4")
}
case ${NIC-none} in
none) ;;
cards)
	card 0 0 virtio-net-pci 0x10
	card 0 1 virtio-net-pci 0x11
	# Slots four apart have one interrupt pin (INTx).
	card 1 0 e1000 0x12
	card 1 1 virtio-net-pci 0x13
	card 2 0 e1000 0x16
	;;
*)
	echo "run.sh: NIC=$NIC is not known" >&2
	exit 2
	;;
esac

qemu=(
	qemu-system-x86_64 -accel "${ACCEL:-tcg,thread=single,tb-size=512}" -M q35 -cpu "${CPU:-max,la57=off,avx=off,avx2=off}"
	-smp 2 -m "${MEMORY:-1536}" -nodefaults -no-user-config -display none -monitor "pipe:$share/monitor" -serial stdio -no-reboot
	-kernel "$kernel/vmlinuz" -initrd "$kernel/initrd"
	-append 'console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable audit=0 apparmor=0 random.trust_cpu=on net.ifnames=0 unknown_nmi_panic panic_print=0x40'
	-drive "file=$system/root.img,format=raw,if=virtio,snapshot=on,cache=unsafe"
	-drive "file=$kernel/modules.img,format=raw,if=virtio,readonly=on"
	-virtfs "local,path=$share,mount_tag=out,security_model=none"
	"${nic[@]}"
)
mkfifo "$share"/monitor.{in,out}
limit=${LIMIT:-300}
# A guest that hangs says where, by a panic; and is killed if it cannot even do that.
{
	read -rt "$limit" _ <> <(:) || true # sleeps, with no process that would be left over
	echo "run.sh: $limit s are over" >&2
	echo nmi >"$share/monitor.in"
} &
watchdog=$!
# The serial line has no end of file to give the guest, and its carriage returns are of no use.
code=0
timeout --foreground -s KILL $((limit + 20)) nice -n "${NICE:-10}" "${qemu[@]}" </dev/null | sed -u 's/\r//g' || code=$?
[[ ! -s $share/status ]] || exit "$(<"$share/status")"
((SECONDS < limit)) || exit 124
echo "run.sh: qemu ended ($code), and the guest had not" >&2
exit 125
