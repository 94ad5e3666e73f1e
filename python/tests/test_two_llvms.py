"""Another LLVM in the process, before and after ours."""

import numpy as np
import pytest

llvm = pytest.importorskip("llvmlite.binding")

import normforge as nf  # noqa: E402


def compile_by_llvmlite():
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly("define i32 @f(i32 %a) { %b = add i32 %a, 1 ret i32 %b }")
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    assert engine.get_function_address("f")


def test_two_llvms():
    compile_by_llvmlite()
    norm = nf.compile(nf._specs.rms_norm_spec(21), engine=nf.Engine(nf._compiler_library(), ""))
    x = np.ones((2, 21), np.float32)
    np.testing.assert_allclose(norm(x=x, gamma=np.ones(21, np.float32)), 1, atol=1e-4)
    compile_by_llvmlite()
    norm.training
