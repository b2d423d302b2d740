"""What a user's own probe may have in the kernel: programs that look and change nothing, and maps that nettop can read.

Judged by what the compiler made, whatever the text says.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import fields, replace

from nettop.bpf import c_layout, own, syscall
from nettop.bpf.config import CONFIG, Config
from nettop.core.errors import NettopError
from nettop.loader.compile import MapSpec, Object

_CALL, _PSEUDO_CALL, _PSEUDO_KFUNC_CALL = 0x85, 1, 2
_STATE = "state"

# enum bpf_func_id (include/uapi/linux/bpf.h): what reads the kernel or the program's own maps, and nothing else.  By
# number, since no kernel lists their names; a helper of a later kernel is not known to be harmless.
_READING = """
1 map_lookup_elem, 2 map_update_elem, 3 map_delete_elem, 164 for_each_map_elem, 195 map_lookup_percpu_elem,
87 map_push_elem, 88 map_pop_elem, 89 map_peek_elem,
4 probe_read, 45 probe_read_str, 112 probe_read_user, 113 probe_read_kernel, 114 probe_read_user_str,
115 probe_read_kernel_str,
5 ktime_get_ns, 118 jiffies64, 125 ktime_get_boot_ns, 160 ktime_get_coarse_ns, 208 ktime_get_tai_ns,
7 get_prandom_u32, 8 get_smp_processor_id, 42 get_numa_node_id,
14 get_current_pid_tgid, 15 get_current_uid_gid, 16 get_current_comm, 35 get_current_task, 158 get_current_task_btf,
120 get_ns_current_pid_tgid, 37 current_task_under_cgroup, 80 get_current_cgroup_id,
123 get_current_ancestor_cgroup_id, 27 get_stackid, 67 get_stack, 141 get_task_stack,
46 get_socket_cookie, 122 get_netns_cookie, 136 skc_to_tcp6_sock, 137 skc_to_tcp_sock, 138 skc_to_tcp_timewait_sock,
139 skc_to_tcp_request_sock, 140 skc_to_udp6_sock, 162 sock_from_file,
130 ringbuf_output, 131 ringbuf_reserve, 132 ringbuf_submit, 133 ringbuf_discard, 134 ringbuf_query,
149 snprintf_btf, 153 per_cpu_ptr, 154 this_cpu_ptr, 165 snprintf, 181 loop, 182 strncmp,
173 get_func_ip, 174 get_attach_cookie, 175 task_pt_regs, 183 get_func_arg, 184 get_func_ret, 185 get_func_arg_cnt
"""
_ALLOWED = frozenset(int(each.split()[0]) for each in _READING.split(","))
# What tracing programs could change something by: for a refusal that says it.
_NAMES = {
    6: "bpf_trace_printk",
    12: "bpf_tail_call",
    25: "bpf_perf_event_output",
    36: "bpf_probe_write_user",
    58: "bpf_override_return",
    107: "bpf_sk_storage_get",
    109: "bpf_send_signal",
    117: "bpf_send_signal_thread",
    148: "bpf_copy_from_user",
    177: "bpf_trace_vprintk",
}


def permitted(name: str, made: Object) -> Object:
    """The compiled object with the hooks of its programs.  Raises NettopError for what must not be loaded.

    An array map whose name ends in ``state`` holds what is under way, see nettop/probes/base.py.
    """
    hooks = own.hooks_of(made.programs)
    if not hooks:
        hint = "name a function HOOK__MECHANISM, such as sk_data_ready__tp_btf"
        raise NettopError(f"{name}.c has no program for any hook", hint)
    for program, code in made.programs.items():
        for called in _refused(code):
            raise NettopError(
                f"{program} calls {called}, and a user's own probe may only look",
                "docs/probes/own.md says what a program may call",
            )
    for spec in made.maps:
        if spec.kind not in set(syscall.MapType):
            raise NettopError(
                f"the map {spec.name} is of a type that nettop does not read", "use a hash or an array"
            )
        if spec.name == CONFIG and not _is_config(spec):
            raise NettopError("the map config is nettop's", "write CONFIG_MAP, or name yours otherwise")
    arrays = (syscall.MapType.ARRAY, syscall.MapType.PERCPU_ARRAY)
    state = tuple(m.name for m in made.maps if m.name.endswith(_STATE) and m.kind in arrays)
    read = tuple(m.name for m in made.maps if m.name not in state)
    return replace(made, hooks=hooks, entries=(), state=state, read=read)


def _is_config(spec: MapSpec) -> bool:
    try:
        kind = c_layout.parse(spec.value_layout)
    except ValueError:
        return False
    wanted = {field.name for field in fields(Config)}
    return isinstance(kind, c_layout.Struct) and kind.size == spec.value_size and wanted <= kind.fields.keys()


def _refused(code: bytes) -> Iterator[str]:
    """The calls that are not allowed, by name where there is one."""
    for opcode, registers, _, number in struct.iter_unpack("<BBhi", code):
        kind = registers >> 4
        if opcode != _CALL or kind == _PSEUDO_CALL:
            continue
        if kind == _PSEUDO_KFUNC_CALL:
            yield "a function of the kernel"
        elif number not in _ALLOWED:
            yield _NAMES.get(number, f"helper {number}")
