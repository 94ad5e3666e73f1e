"""Normforge's norms beside what else computes them on a CPU, through Python.

  PYTHONPATH=bench build/peers/bin/python -m peers [--quick] [--threads N] [--build DIR]
      [--operators batch,layer,group,rms] [--phases inference,training,backward]
      [--json FILE] [--svg FILE] [--markdown]

The contenders are Normforge, PyTorch, torch.compile, ONNX Runtime (inference, channels first) and
XLA (jax.jit), in f32: batch norm in nchw and nhwc, group norm in both, layer and RMS norm of rows.
Training is the forward pass with statistics of the batch: moving statistics updated, y returned.
Backward gives the gradients of x, gamma and beta from dy and the statistics that the forward pass
saved; PyTorch's goes through its autograd engine, as its users' does, and through one graph again and
again, so that compiled code may not reuse what the forward pass has saved (donated_buffer). It needs Normforge built in
DIR, a C++ compiler for torch.compile, and the packages numpy, torch, onnx, onnxruntime and jax.

Every shape has a process of its own. In it the contenders run in turn, in blocks of calls, each on
its own copy of the same data, with the same number of threads, one a processor. The first call of
a block is not counted: it pays for what the one before left in the caches. Times are medians over
the blocks; a ratio is the median over the rounds of another's time over Normforge's. Normforge and
ONNX Runtime write into memory that they are given; the others return new arrays, as they do for
their users, but from a malloc that keeps freed memory, so that they seldom pay for new pages. Each
result is compared with one computed in f64 before it is timed.

--json writes an object a contender and case, with its ratio to Normforge in the same layout and to
Normforge in the operator's first one. Nothing else should run on the machine meanwhile: the spread
of the times, at the end of the table, tells.

Exit status: 0 all was measured, 1 something was left out (it says what and why), 2 bad input.
"""
