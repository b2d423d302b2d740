"""What compiles, what must not, and when a compilation is done again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nettop.bpf.hooks import Attachment
from nettop.core.errors import ExitCode, NettopError
from nettop.loader import compile as compiler
from nettop.loader import headers
from nettop.loader.compile import compile_probe, compile_source

PROGRAM = "\nint program(struct __sk_buff *skb)\n{\n\treturn -1;\n}\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "program.c"
    path.write_text(PROGRAM)
    return path


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The jobs of the compiler's child processes; each is answered as the first was."""
    started: list[str] = []
    answers: list[object] = []

    def answer(*args: object, **options: object) -> object:
        started.append(str(options["input"]))
        if not answers:
            answers.append(subprocess.run(*args, **options))  # type: ignore[call-overload]
        return answers[0]

    patched = SimpleNamespace(run=answer, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(compiler, "subprocess", patched)
    return started


def test_a_warning_is_an_error(tmp_path: Path, source: Path) -> None:
    source.write_text("int program(struct __sk_buff *skb)\n{\n\tint unset;\n\n\treturn unset;\n}\n")
    with pytest.raises(NettopError) as caught:
        compile_source(source, tmp_path)
    assert "-Wuninitialized" in caught.value.hint


def test_arm64_has_no_warnings_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BCC takes the machine from ARCH; it is arm64's compiler that has doubts about assembly."""
    monkeypatch.setenv("ARCH", "arm64")
    assert compile_probe("throughput", tmp_path).programs


def test_a_tagged_member_without_a_name_is_a_member(tmp_path: Path, source: Path) -> None:
    """As in struct sock of Linux 6.19 and later (struct slock_owned)."""
    source.write_text(
        "struct tagged {\n\tu64 inner;\n};\nstruct outer {\n\tu32 before;\n\tstruct tagged;\n\tu32 after;\n};\n"
        '_Static_assert(offsetof(struct outer, inner) == 8, "inner");\n'
        '_Static_assert(offsetof(struct outer, after) == 16, "after");\n' + PROGRAM
    )
    assert set(compile_source(source, tmp_path).programs) == {"program"}


def test_a_structure_of_another_size_than_the_kernels_is_refused(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member that clang left out, say: nothing is read at the wrong place."""
    size = headers.Btf.size

    def larger(btf: headers.Btf, ident: int) -> int:
        tcp_sock = btf.find("tcp_sock", headers.STRUCT)
        return size(btf, ident) + 8 * (ident == tcp_sock)

    monkeypatch.setattr(headers.Btf, "size", larger)
    with pytest.raises(NettopError) as caught:
        compile_source(source, tmp_path)
    assert "struct tcp_sock is not what BTF says" in caught.value.hint


@pytest.mark.parametrize("release", ["6.0.19-amd64", "5.15.0-91-generic", "2.6.78"])
def test_a_kernel_before_6_1_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    monkeypatch.setattr(headers.platform, "release", lambda: release)
    with pytest.raises(NettopError) as caught:
        headers.header_tree(tmp_path)
    assert caught.value.code == ExitCode.UNSUPPORTED
    assert caught.value.message == f"kernel {release} is too old for nettop"
    assert caught.value.hint == "Linux 6.1 or later is needed"


@pytest.mark.parametrize(
    "release", ["6.1.0", "6.1.0-50-amd64", "6.12.107+deb13-amd64", "7.3.4+deb13-amd64", "10.0"]
)
def test_a_kernel_from_6_1_on_is_not(monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    monkeypatch.setattr(headers.platform, "release", lambda: release)
    headers.check_machine()


def test_a_big_endian_machine_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers.sys, "byteorder", "big")
    with pytest.raises(NettopError) as caught:
        headers.header_tree(tmp_path)
    assert caught.value.code == ExitCode.UNSUPPORTED
    assert "big-endian" in caught.value.message


def test_what_is_compiled_is_kept(tmp_path: Path, source: Path, runs: list[str]) -> None:
    first, second = compile_source(source, tmp_path), compile_source(source, tmp_path)
    assert first == second
    assert len(runs) == 1


def test_another_llvm_compiles_again(tmp_path: Path, source: Path, runs: list[str]) -> None:
    """The libraries that a result was made by are named in it; one that was exchanged since makes it void."""
    made = compile_source(source, tmp_path)
    assert any("/libbcc" in name for name in made.compiler)
    (kept,) = tmp_path.glob("*.json")
    changes = [("/nowhere/libLLVM.so.14", [1, 1])]
    for name, (size, mtime) in made.compiler.items():
        changes += [(name, [size, mtime + 1]), (name, [size + 1, mtime])]
    for name, stamp in changes:
        data = json.loads(kept.read_text())
        data["compiler"][name] = stamp
        kept.write_text(json.dumps(data))
        runs.clear()
        assert compile_source(source, tmp_path) == made
        assert len(runs) == 1, name


def test_another_bcc_compiles_again(
    tmp_path: Path, source: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = compiler._bcc_files()
    assert "version.py" in {path.name for path in files}
    compile_source(source, tmp_path)
    newer = tmp_path / "version.py"
    newer.write_text("__version__ = '99'\n")
    monkeypatch.setattr(
        compiler, "_bcc_files", lambda: [newer, *(p for p in files if p.name != "version.py")]
    )
    compile_source(source, tmp_path)
    assert len(runs) == 2


def test_a_changed_helper_module_compiles_again(
    tmp_path: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that the child imports is part of what a result is known by; and a result says all that it is."""
    words = "import sys, nettop.loader.compile; from nettop.probes.base import all_probes; all_probes(); "
    words += "print(*(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'nettop'))"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    imported = {Path(line) for line in done.stdout.split()}
    modules = compiler._shaping_modules()
    assert len(imported) > 10
    assert imported <= set(modules)

    made = compile_probe("throughput", tmp_path)
    assert compiler.Object.from_json(made.to_json()) == made
    assert all(isinstance(a, Attachment) for h in made.hooks for c in h.candidates for a in c.attachments)
    changed = tmp_path / "config.py"
    changed.write_text((compiler.PACKAGE / "bpf" / "config.py").read_text() + "\n")
    monkeypatch.setattr(
        compiler, "_shaping_modules", lambda: [changed if p.name == "config.py" else p for p in modules]
    )
    runs.clear()
    assert compile_probe("throughput", tmp_path) == made
    assert len(runs) == 1


def test_a_compiler_that_does_not_end_is_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow or busy machine: the probe fails, and the loader lives on for the others."""
    monkeypatch.setattr(compiler, "_PATIENCE_S", 0.01)
    with pytest.raises(NettopError, match=r"throughput\.c was not compiled within 0\.01 s"):
        compile_probe("throughput", tmp_path)
