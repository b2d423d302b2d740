#!/usr/bin/env bash
#
# tests/vm/run.sh KERNEL ROOT 'COMMAND': the command in a guest, as root, in a copy of this checkout; its exit status.
# 124: over the time limit; 125: the guest never came to the command's end.
#
#   OUT=DIR      what the guest finds as /out, to leave results in (a temporary one, thrown away)
#   LIMIT=300    seconds
#   NIC=none     none; cards: two virtio NICs joined by a cable (52:54:00:4e:54:00 and 01), an e1000 and a virtio NIC
#                (10 and 11), and an e1000 alone (20) that shares the other's interrupt line; queues: two virtio NICs (00 and
#                01) with a queue a CPU, joined by taps and a bridge in a network namespace of this guest's own
#   CPUS=2       how many, and how many the kernel must expect: "2,maxcpus=255"
#   APPEND=      more for the kernel's command line
#   ARCH=amd64   or arm64
#   MEMORY=1536  megabytes
#   ACCEL=tcg,thread=single  kvm where it can be trusted.  With a thread for each CPU QEMU 7.2 runs code that the guest
#                has changed meanwhile (tracepoints do that) in its old form, and now and then for ever
#   CPU=max,avx=off          amd64: QEMU 7.2 loses AVX registers now and then: numpy died of it in one run of four
#
# The guest has no way out: no network but its own, and a root disk whose changes are thrown away.

set -euo pipefail
here=$(cd "${BASH_SOURCE[0]%/*}" && pwd -P)
root=${here%/tests/vm}

[[ $# -eq 3 ]] || {
	echo "usage: tests/vm/run.sh KERNEL ROOT COMMAND   (releases as for build.sh)" >&2
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
# The lab's own C programs: a guest of this machine's kind has no compiler.
[[ ! -d /var/cache/nettop-lab || ${ARCH:-amd64} != amd64 ]] || tar -C /var/cache -rf "$share/payload.tar" nettop-lab

# card HUB END MODEL SLOT: a NIC, and the cable that it is at.
card() {
	nic+=(-netdev "hubport,id=port$1$2,hubid=$1" -device "$3,netdev=port$1$2,mac=52:54:00:4e:54:$1$2,addr=$4")
}
cpus=${CPUS:-2}
isolated=()
case ${NIC-none} in
none) ;;
queues)
	for end in 0 1; do
		nic+=(
			-netdev "tap,id=tap$end,ifname=tap$end,queues=${cpus%%,*},script=no,downscript=no,vhost=off"
			-device "virtio-net-pci,netdev=tap$end,mq=on,vectors=$((2 * ${cpus%%,*} + 2)),mac=52:54:00:4e:54:0$end,addr=0x1$end"
		)
	done
	# shellcheck disable=SC2016 # the inner shell's own
	isolated=(unshare --net sh -ec '
		ip link add bridge type bridge
		for tap in tap0 tap1; do
			ip tuntap add "$tap" mode tap multi_queue
			sysctl -qw "net.ipv6.conf.$tap.disable_ipv6=1" net.ipv6.conf.bridge.disable_ipv6=1
			ip link set "$tap" master bridge up
		done
		ip link set bridge up
		exec "$@"' isolated)
	;;
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

machine=()
case ${ARCH:-amd64} in
amd64)
	console=ttyS0
	machine=(qemu-system-x86_64 -M q35 -cpu "${CPU:-max,la57=off,avx=off,avx2=off}")
	;;
arm64)
	console=ttyAMA0
	machine=(qemu-system-aarch64 -M virt -cpu "${CPU:-cortex-a72}")
	;;
esac
append="console=$console quiet panic=-1 mitigations=off nokaslr tsc=reliable audit=0 apparmor=0 random.trust_cpu=on"
append+=" net.ifnames=0 unknown_nmi_panic panic_print=0x40 ${APPEND-}"
qemu=(
	"${machine[@]}" -accel "${ACCEL:-tcg,thread=single,tb-size=512}"
	-smp "$cpus" -m "${MEMORY:-1536}" -nodefaults -no-user-config -display none -monitor "pipe:$share/monitor"
	-serial stdio -no-reboot
	-kernel "$kernel/vmlinuz" -initrd "$kernel/initrd" -append "$append"
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
timeout --foreground -s KILL $((limit + 20)) nice -n "${NICE:-10}" "${isolated[@]}" "${qemu[@]}" </dev/null | sed -u 's/\r//g' || code=$?
[[ ! -s $share/status ]] || exit "$(<"$share/status")"
((SECONDS < limit)) || exit 124
echo "run.sh: qemu ended ($code), and the guest had not" >&2
exit 125
