# shellcheck shell=bash
#
# Set-up that run, test and install share: packages of the distribution, then a virtual environment made from the
# Python that owns bcc.  Whatever it says goes to standard error: standard output belongs to nettop's data.

set -euo pipefail

root=$(cd "${BASH_SOURCE[0]%/*}/.." && pwd -P)
venv=$root/.venv
unfinished=$root/.venv.unfinished # lies beside the environment while it is being changed
owner=$(stat -c %u "$root")
PATH=$PATH:/usr/sbin:/sbin # a user's PATH on Debian lacks ip, tcpdump and ethtool

# What nettop needs of the distribution, and what its tests need besides.
needs_run=(bcc venv pcap)
needs_test=(iperf3 tcpdump ethtool ip tc ss nft dnsmasq ping ps gcc libc linux)
needs_bench=(nethogs iftop) # beside tcpdump, which the tests need: what nettop is compared with
needs_vm=(qemu-system-x86_64 qemu-system-aarch64 mmdebstrap debian-archive-keyring kmod mkfs.ext4 cpio xz)

# die CODE WHAT HINT
die() {
	printf 'nettop: %s\nhint: %s\n' "$2" "$3" >&2
	exit "$1"
}

is_root() {
	((EUID == 0))
}

# Whether sudo made us root in the checkout of a user.
is_guest() {
	is_root && ((owner != 0))
}

say() {
	printf 'nettop: %s\n' "$*" >&2
}

# The package manager of this distribution, or nothing.
package_manager() {
	local ID='' ID_LIKE=''
	# shellcheck disable=SC1090
	. "${NETTOP_OS_RELEASE:-/etc/os-release}" 2>/dev/null || true
	case " $ID $ID_LIKE " in
	*' debian '* | *' ubuntu '*) echo apt ;;
	*' fedora '* | *' rhel '*) echo dnf ;;
	*' arch '*) echo pacman ;;
	*' suse '* | *' opensuse '*) echo zypper ;;
	*' alpine '*) echo apk ;;
	esac
}

# A need, and the package that fills it; "-" where the distribution has none.
packages() {
	cat <<-'TABLE'
		need                   apt                    dnf                  pacman            zypper            apk
		bcc                    python3-bpfcc          python3-bcc          python-bcc        python3-bcc       py3-bcc
		venv                   python3-venv           python3              python            python3           python3
		pcap                   libpcap0.8             libpcap              libpcap           libpcap1          libpcap
		setpriv                util-linux             util-linux           util-linux        util-linux        setpriv
		iperf3                 iperf3                 iperf3               iperf3            iperf             iperf3
		tcpdump                tcpdump                tcpdump              tcpdump           tcpdump           tcpdump
		ethtool                ethtool                ethtool              ethtool           ethtool           ethtool
		ip                     iproute2               iproute              iproute2          iproute2          iproute2
		tc                     iproute2               iproute-tc           iproute2          iproute2          iproute2-tc
		ss                     iproute2               iproute              iproute2          iproute2          iproute2-ss
		nft                    nftables               nftables             nftables          nftables          nftables
		dnsmasq                dnsmasq-base           dnsmasq              dnsmasq           dnsmasq           dnsmasq
		ping                   iputils-ping           iputils              iputils           iputils           iputils-ping
		ps                     procps                 procps-ng            procps-ng         procps            procps-ng
		gcc                    gcc                    gcc                  gcc               gcc               gcc
		libc                   libc6-dev              glibc-devel          glibc             glibc-devel       musl-dev
		linux                  linux-libc-dev         kernel-headers       linux-api-headers linux-glibc-devel linux-headers
		nethogs                nethogs                nethogs              nethogs           nethogs           nethogs
		iftop                  iftop                  iftop                iftop             iftop             iftop
		qemu-system-x86_64     qemu-system-x86        qemu-system-x86-core qemu-base         qemu-x86          qemu-system-x86_64
		qemu-system-aarch64    qemu-system-arm        qemu-system-aarch64-core qemu-system-aarch64 qemu-arm       qemu-system-aarch64
		mmdebstrap             mmdebstrap             mmdebstrap           -                 -                 -
		debian-archive-keyring debian-archive-keyring debian-keyring       -                 -                 -
		kmod                   kmod                   kmod                 kmod              kmod              kmod
		mkfs.ext4              e2fsprogs              e2fsprogs            e2fsprogs         e2fsprogs         e2fsprogs
		cpio                   cpio                   cpio                 cpio              cpio              cpio
		xz                     xz-utils               xz                   xz                xz                xz
	TABLE
}

# package_of MANAGER NEED
package_of() {
	local -A column=([apt]=1 [dnf]=2 [pacman]=3 [zypper]=4 [apk]=5)
	local -a row
	while read -ra row; do
		[[ ${row[0]} == "$2" ]] || continue
		echo "${row[${column[$1]}]}"
		return
	done < <(packages)
	return 1
}

# The distribution's Python that owns bcc.  Not the first in PATH, which may be pyenv's or conda's and never has it.
# The attribute BPF tells bcc from the unrelated package of that name on PyPI.
find_python() {
	local python
	for python in ${NETTOP_PYTHON:+"$NETTOP_PYTHON"} /usr/bin/python3 /usr/bin/python3.[1-9][0-9]; do
		[[ -x $python ]] || continue
		"$python" -I -c 'import bcc; bcc.BPF' 2>/dev/null || continue
		echo "$python"
		return
	done
	return 1
}

# have NEED
have() {
	local python
	case $1 in
	bcc) find_python >/dev/null ;;
	# Debian's python3 comes without ensurepip, which is what makes the environment's pip.
	venv) python=$(find_python || echo /usr/bin/python3) && "$python" -I -c 'import ensurepip, venv' 2>/dev/null ;;
	pcap) compgen -G '/usr/lib*/libpcap.so.*' >/dev/null || compgen -G '/usr/lib*/*/libpcap.so.*' >/dev/null ;;
	libc) [[ -e /usr/include/stdio.h ]] ;;
	linux) [[ -e /usr/include/linux/if_tun.h ]] ;;
	debian-archive-keyring) compgen -G '/usr/share/keyrings/debian-archive-*' >/dev/null ;;
	*) type -P "$1" >/dev/null ;;
	esac
}

# behind_proxy: the end of a hint where sudo may have taken the proxy away, as it does unless it is told otherwise.
behind_proxy() {
	[[ -z ${SUDO_UID-} || ${http_proxy-}${https_proxy-}${HTTPS_PROXY-} ]] ||
		printf '; sudo drops http_proxy: behind a proxy, sudo --preserve-env=http_proxy,https_proxy,no_proxy %s' "$0"
}

# install_packages NEED...: installs what is missing of these, and nothing else; $installed says what that was.
installed=()
install_packages() {
	local need package manager log
	local -a missing=() command=()
	manager=$(package_manager)
	for need; do
		have "$need" && continue
		[[ $manager ]] || die 4 "'$need' is missing, and this distribution is not known to $0" \
			"install BCC for Python, libpcap and Python's venv by hand, then try again"
		package=$(package_of "$manager" "$need")
		[[ $package != - ]] || die 4 "'$need' is missing, and $manager has no package of it" "use Debian or Ubuntu"
		[[ " ${missing[*]} " == *" $package "* ]] || missing+=("$package")
	done
	((${#missing[@]})) || return 0

	case $manager in
	apt) command=(apt-get install -y --no-install-recommends) ;;
	dnf) command=(dnf install -y --setopt=install_weak_deps=False) ;;
	pacman) command=(pacman -S --needed --noconfirm) ;;
	zypper) command=(zypper --non-interactive install --no-recommends) ;;
	apk) command=(apk add) ;;
	esac
	is_root || die 3 "these packages are missing: ${missing[*]}" "sudo $0, or sudo ${command[*]} ${missing[*]}"
	say "installing ${missing[*]} (by $manager)"
	[[ $manager == apt ]] || say "set-up by $manager is untested: please report how it went"
	log=$(mktemp)
	# A list that can't be had (no network, a broken third repository) need not stop the packages themselves.
	[[ $manager != apt ]] || apt-get -q update >"$log" 2>&1 || true
	[[ $manager != apt ]] || command+=(-o DPkg::Lock::Timeout=120)
	if ! DEBIAN_FRONTEND=noninteractive "${command[@]}" "${missing[@]}" >>"$log" 2>&1 </dev/null; then
		tail -n 20 "$log" >&2
		rm -f "$log"
		die 4 "$manager could not install ${missing[*]}" \
			"see its words above; then: ${command[*]} ${missing[*]}$(behind_proxy)"
	fi
	rm -f "$log"
	# shellcheck disable=SC2034 # install reads it
	installed=("${missing[@]}")
}

# as_owner COMMAND...: as the user who owns the checkout, where sudo made us root, so that files belong to them.
as_owner() {
	local home gid
	if ! is_guest; then
		"$@"
		return
	fi
	home=$(getent passwd "$owner" | cut -d: -f6) || home=
	gid=$(stat -c %g "$root")
	HOME=${home:-/nonexistent} setpriv --reuid "$owner" --regid "$gid" --clear-groups -- "$@"
}

# What an environment's set-up depends on: another pyproject.toml, Python, or place of the checkout needs it again.
stamp_key() {
	local sum
	sum=$(sha256sum "$root/pyproject.toml")
	echo "${sum%% *} $(readlink -f "$venv/bin/python") $root"
}

# stamped GROUP: whether set-up of the group (run or test) is done and still holds.  That of the tests is enough to run.
stamped() {
	stamp_holds "$venv/.nettop-$1" || { [[ $1 == run ]] && stamp_holds "$venv/.nettop-test"; }
}

# stamp_holds FILE.  After the key, a stamp names files that a removed package would take away.
stamp_holds() {
	local line key
	[[ -r $1 && ! -e $unfinished ]] || return 1
	{
		read -r key
		[[ $key == "$(stamp_key)" ]] || return 1
		while read -r line; do
			[[ -e $line ]] || return 1
		done
	} <"$1"
}

stamp() {
	{
		stamp_key
		"$venv/bin/python" -I -c 'import bcc, sys; print(bcc.__file__, sys.executable, sep="\n")'
	} | as_owner tee "$venv/.nettop-$1" >/dev/null
}

# Whether the environment is one that we would make: from this Python, for this place, seeing the distribution's bcc.
venv_fits() {
	local python=$1 config
	[[ ! -e $unfinished && $(stat -c %u "$venv" 2>/dev/null) == "$owner" ]] || return 1
	config=$(cat "$venv/pyvenv.cfg" 2>/dev/null) || return 1
	[[ $config == *'include-system-site-packages = true'* ]] || return 1
	[[ $config == *"executable = $(readlink -f "$python")"* ]] || return 1
	[[ $config == *"command = "*" $venv" || $config == *"command = "*" $venv"$'\n'* ]] || return 1
	"$venv/bin/python" -I -c 'import pip; import bcc; bcc.BPF' 2>/dev/null
}

# find_python, or the end with the reason why there is none.
need_python() {
	local python
	python=$(find_python) || die 4 "no Python here has a working bcc" \
		"reinstall the distribution's BCC for Python; if pip put its unrelated package 'bcc' before it, uninstall that"
	"$python" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
		die 4 "the Python that owns bcc is older than 3.11" "use a newer release of the distribution (Debian 12, Ubuntu 24.04)"
	echo "$python"
}

# set_up_venv GROUP: the environment for run or test.  Whatever interrupts it, the next call puts it right.
set_up_venv() {
	local python requires extras=''
	local -a build=()
	python=$(need_python)
	if ! venv_fits "$python"; then
		say "making .venv from $python"
		rm -rf "$venv"
		as_owner touch "$unfinished"
		as_owner "$python" -I -m venv --system-site-packages "$venv" >&2 ||
			die 4 "$python could not make .venv" "see its words above"
	fi
	say "installing Python packages into .venv"
	as_owner touch "$unfinished"
	trap 'exit 130' INT TERM # and leave $unfinished: pip was stopped half-way
	[[ $1 == run ]] || extras='[test,lint]'
	# The build requirements go into the environment too, so that a later set-up needs no network for them.
	requires=$(cd "$root" && "$python" -I -c \
		'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")')
	mapfile -t build <<<"$requires"
	if ! { pip_install "${build[@]}" && pip_install --no-build-isolation --editable "$root$extras"; }; then
		as_owner rm -f "$unfinished" # pip has put back what it had begun
		die 4 "pip could not install nettop's Python packages" \
			"see its words above; the first set-up needs the network$(behind_proxy)"
	fi
	stamp "$1"
	as_owner rm -f "$unfinished"
}

pip_install() {
	as_owner "$venv/bin/python" -I -m pip install --quiet --disable-pip-version-check --no-input --retries 2 "$@" >&2
}

# Root would leave its own __pycache__ in a user's checkout.  So the owner compiles, and root writes none.
compile_as_owner() {
	is_guest || return 0
	export PYTHONDONTWRITEBYTECODE=1
	local done=$venv/.nettop-compiled
	[[ ! -e $done || $(find "$root/nettop" -name '*.py' -newer "$done" -print -quit) ]] || return 0
	as_owner touch "$done"
	as_owner "$venv/bin/python" -I -m compileall -q "$root/nettop" >/dev/null || true # nettop itself will say
}

# set_up run|test|bench|vm: everything that nettop, its tests, its benchmarks, or its tests in virtual machines need.
# Instant where it is done already.
set_up() {
	local group=$1 need lock incomplete=''
	local -a needs=()
	[[ $group == run ]] || needs+=("${needs_test[@]}")
	[[ $group != vm ]] || needs+=("${needs_vm[@]}")
	[[ $group != bench ]] || needs+=("${needs_bench[@]}")
	[[ $group != vm && $group != bench ]] || group='test' # the same environment
	for need in pcap "${needs[@]}"; do # bcc and venv cost a Python to look for: the stamp answers for them
		have "$need" || incomplete=yes
	done
	if [[ $incomplete ]] || ! stamped "$group"; then
		[[ -w $root ]] || die 3 "this user may not write to $root" "run it as the owner of the checkout, or by sudo"
		exec {lock}<"$root"
		flock "$lock" # two at once: the second waits, and then finds it done
		(
			umask 022 # a sudo with umask 077 would hide the environment from the unprivileged screen
			! is_guest || needs=(setpriv "${needs[@]}")
			install_packages "${needs_run[@]}" "${needs[@]}"
			stamped "$group" || set_up_venv "$group"
		)
		exec {lock}<&-
	fi
	compile_as_owner
}
