/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * One line of a probe's hook table makes the programs that watch a hook, one for each mechanism.
 * nettop/bpf/hook_table.py reads the same lines and makes of them what the loader attaches.
 *
 *     TRACEPOINT(hook, flag, program, call, tracepoints)          PROGRAM      tp_btf: typed arguments
 *                                                                 PROGRAM_raw  raw_tracepoint
 *     FUNCTION(hook, flag, program, call, functions)              PROGRAM      fentry
 *                                                                 PROGRAM_kprobe
 *     EITHER(hook, flag, program, call, tracepoints, functions)   all of these: the arguments have the same numbers
 *     KPROBE(hook, flag, program, call, functions)                PROGRAM
 *     NETFILTER(hook, flag, program, body, netfilter hook)        PROGRAM      where there are such links (since 6.4)
 *     FALLBACK(hook, flag, program, call, functions)              as FUNCTION, for where there are none
 *
 * flag: a bit of config.flags that is set where no mechanism works, or 0.  call: the body as it is called, its
 * arguments POINTER(n) and INT(n), the hook's argument number n, and `typed`: does the verifier know what a pointer
 * points to (load.h)?  Targets are separated by blanks, each perhaps several names for one function with | between
 * them.  Lines of one hook are tried in their order; those of one mechanism are attached together.
 */
#ifndef HOOK_H
#define HOOK_H

/* An argument as each kind of program finds it; its type is kept for the verifier. */
#define ARGUMENT_READERS(number, parameter)                                                                \
	static __always_inline                                                                             \
		__attribute__((overloadable)) void *argument_##number(struct bpf_raw_tracepoint_args *ctx) \
	{                                                                                                  \
		void *argument;                                                                            \
		LOAD_AS(argument, ctx, 8 * (number), "u64");                                               \
		return argument;                                                                           \
	}                                                                                                  \
	static __always_inline __attribute__((overloadable)) void *argument_##number(struct pt_regs *ctx)  \
	{                                                                                                  \
		return (void *)parameter(ctx);                                                             \
	}

ARGUMENT_READERS(0, PT_REGS_PARM1)
ARGUMENT_READERS(1, PT_REGS_PARM2)
ARGUMENT_READERS(2, PT_REGS_PARM3)

#define POINTER(number) argument_##number(ctx)
#define INT(number) ((int)(long)argument_##number(ctx))

#define PROGRAM(program, argument_type, kind, call) \
	int program(struct argument_type *ctx)      \
	{                                           \
		const int typed = kind;             \
		(void)typed;                        \
		return call;                        \
	}

#define TYPED_PROGRAM(program, call) PROGRAM(program, bpf_raw_tracepoint_args, TYPED, call)
/* For a typed and a plain raw tracepoint, as it follows no pointer. */
#define ANY_PROGRAM(program, call) PROGRAM(program, bpf_raw_tracepoint_args, UNTYPED, call)
/*
 * Kernels with BTF and netfilter links need the typed programs alone: a third of the compiler's time. The loader
 * compiles the others when something could not be attached.
 */
#ifdef TYPED_ONLY
#define RAW_PROGRAM(program, call)
#define KPROBE_PROGRAM(program, call)
#else
#define RAW_PROGRAM(program, call) PROGRAM(program, bpf_raw_tracepoint_args, UNTYPED, call)
#define KPROBE_PROGRAM(program, call) PROGRAM(program, pt_regs, UNTYPED, call)
#endif

#define TRACEPOINT(hook, flag, program, call, tracepoints) \
	TYPED_PROGRAM(program, call)                       \
	RAW_PROGRAM(program##_raw, call)
#define FUNCTION(hook, flag, program, call, functions) \
	TYPED_PROGRAM(program, call)                   \
	KPROBE_PROGRAM(program##_kprobe, call)
#define EITHER(hook, flag, program, call, tracepoints, functions) \
	TYPED_PROGRAM(program, call)                              \
	RAW_PROGRAM(program##_raw, call)                          \
	KPROBE_PROGRAM(program##_kprobe, call)
#define KPROBE(hook, flag, program, call, functions) KPROBE_PROGRAM(program, call)
#ifdef HAVE_bpf_nf_ctx
#define NETFILTER(hook, flag, program, body, place) \
	int program(struct bpf_nf_ctx *ctx)         \
	{                                           \
		body(ctx);                          \
		return NF_ACCEPT;                   \
	}
#else
#define NETFILTER(hook, flag, program, body, place)
#endif

#if defined(TYPED_ONLY) && defined(HAVE_bpf_nf_ctx)
#define FALLBACK(hook, flag, program, call, functions)
#else
#define FALLBACK FUNCTION
#endif

#endif
