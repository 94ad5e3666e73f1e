"""PyTorch's layers by our kernels, beside PyTorch's own."""

import contextlib
import copy
import multiprocessing
import pickle

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

import normforge as nf  # noqa: E402
import normforge.torch as nft  # noqa: E402

LAYERS = {
    "BatchNorm1d of rows": (lambda: nn.BatchNorm1d(7), (9, 7)),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(7), (4, 7, 5)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(16), (3, 16, 6, 5)),
    "BatchNorm2d without parameters": (lambda: nn.BatchNorm2d(16, affine=False), (3, 16, 6, 5)),
    "BatchNorm2d without statistics": (
        lambda: nn.BatchNorm2d(16, track_running_stats=False),
        (3, 16, 6, 5),
    ),
    "BatchNorm2d of all batches": (lambda: nn.BatchNorm2d(16, momentum=None), (3, 16, 6, 5)),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(6, eps=1e-2, momentum=0.3), (2, 6, 3, 4, 5)),
    "SyncBatchNorm": (lambda: nn.SyncBatchNorm(6), (4, 6, 3, 3)),
    "LayerNorm": (lambda: nn.LayerNorm(48), (5, 3, 48)),
    "LayerNorm of two axes": (lambda: nn.LayerNorm([3, 48]), (5, 3, 48)),
    "LayerNorm without parameters": (
        lambda: nn.LayerNorm(48, elementwise_affine=False),
        (5, 48),
    ),
    "LayerNorm without bias": (lambda: nn.LayerNorm(48, bias=False), (5, 48)),
    "RMSNorm": (lambda: nn.RMSNorm(40), (5, 3, 40)),
    "RMSNorm with eps": (lambda: nn.RMSNorm(40, eps=1e-3), (5, 3, 40)),
    "GroupNorm": (lambda: nn.GroupNorm(4, 12), (3, 12, 5, 4)),
    "GroupNorm of rows": (lambda: nn.GroupNorm(4, 12), (3, 12)),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(6), (3, 6, 8)),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(6, affine=True), (3, 6, 5, 4)),
    "InstanceNorm3d": (lambda: nn.InstanceNorm3d(6), (2, 6, 3, 4, 5)),
}
TOLERANCE = {
    torch.float32: 2e-5,
    torch.float64: 1e-11,
    torch.bfloat16: 6e-2,
    torch.float16: 8e-3,
}


def pair(make, dtype=torch.float32):
    torch.manual_seed(1)
    theirs = make().to(dtype)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    ours = nft.replace_norms(copy.deepcopy(theirs))
    assert type(ours).__module__ == "normforge.torch"
    return ours, theirs


def close(ours, theirs, dtype):
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    assert ours.stride() == theirs.stride()
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_layer(layer, dtype):
    make, shape = LAYERS[layer]
    ours, theirs = pair(make, dtype)
    if layer == "SyncBatchNorm":  # PyTorch's own is for GPUs
        theirs = nn.BatchNorm2d(6).to(dtype)
        theirs.load_state_dict(ours.state_dict())
    for step in range(3):
        x = (torch.randn(shape) * 2 + 1).to(dtype)
        dy = torch.randn(shape).to(dtype)
        results = []
        for module in (ours, theirs):
            module.zero_grad()
            given = x.clone().requires_grad_()
            y = module(given)
            y.backward(dy)
            results.append((y, given.grad, *(p.grad for p in module.parameters())))
        for mine, other in zip(*results):
            close(mine, other, dtype)
        for mine, other in zip(ours.buffers(), theirs.buffers()):
            if mine.dtype == dtype:
                close(mine, other, dtype)
            else:
                assert mine == other
    ours.eval(), theirs.eval()
    with torch.no_grad():
        close(ours(x), theirs(x), dtype)
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("layer", ["BatchNorm2d", "BatchNorm3d", "GroupNorm", "InstanceNorm2d"])
def test_channels_last(layer):
    make, shape = LAYERS[layer]
    form = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    ours, theirs = pair(make)
    x = torch.randn(shape).to(memory_format=form)
    for module in (ours, theirs):
        module.given = x.clone(memory_format=torch.preserve_format).requires_grad_()
    a, b = ours(ours.given), theirs(theirs.given)
    assert a.is_contiguous(memory_format=form)
    torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5)
    dy = torch.randn(shape)
    a.backward(dy), b.backward(dy)
    torch.testing.assert_close(ours.given.grad, theirs.given.grad, atol=2e-5, rtol=2e-5)


def test_frozen_statistics():
    ours, theirs = pair(lambda: nn.BatchNorm2d(16))
    ours.eval(), theirs.eval()
    x = torch.randn(3, 16, 4, 4)
    results = []
    for module in (ours, theirs):
        given = x.clone().requires_grad_()
        module(given).square().sum().backward()
        results.append(given.grad)
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


def test_gradcheck():
    for make, shape in (LAYERS["BatchNorm2d"], LAYERS["LayerNorm"], LAYERS["GroupNorm"]):
        ours, _ = pair(make, torch.float64)
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(ours, (x,))


def test_second_derivatives_are_an_error():
    ours, _ = pair(lambda: nn.LayerNorm(48))
    x = torch.randn(4, 48, requires_grad=True)
    (gradient,) = torch.autograd.grad(ours(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_opcheck():
    spec = nf._specs.layer_norm_spec(48, phases=["inference", "training", "backward"])
    x, gamma, beta = torch.randn(4, 48), torch.randn(48), torch.randn(48)
    for phase in ("inference", "training"):
        torch.library.opcheck(torch.ops.normforge.apply, ([spec], phase, [x, gamma, beta], []))
    given = x.clone().requires_grad_()
    (y,) = torch.ops.normforge.apply([spec], "inference", [given, gamma, beta], [])
    with pytest.raises(NotImplementedError, match="first derivatives alone"):
        y.sum().backward()


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_opcheck_of_layouts(form):
    layer = nft.replace_norms(nn.Sequential(nn.BatchNorm2d(8)))[0]
    layer._fused = ("add", "relu")
    x = torch.randn(2, 8, 3, 5).to(memory_format=form)
    specs = layer._specs(x, layer.weight, layer.bias)
    given = [x, layer.weight, layer.bias, layer.running_mean, layer.running_var, x.clone()]
    given = [tensor.detach() for tensor in given]
    operator = torch.ops.normforge.apply_with_mask
    torch.library.opcheck(operator, (specs, "training", given, [0.1]))
    y, _, _, mean, variance, mask = operator(specs, "training", given, [0.1])
    assert y.is_contiguous(memory_format=form)
    read = [x, torch.ones_like(y), given[1], mean, variance, mask]
    torch.library.opcheck(operator, (specs, "backward", read, []))
    read = [x, torch.ones(y.shape), given[1], mean, variance, mask]
    dx, *_ = operator(specs, "backward", read, [])
    assert dx.is_contiguous(memory_format=form)


class _Convolutions(nn.Module):
    """torch.compile lays its images out with channels last, whatever it is given."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.gn = nn.GroupNorm(2, 8)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.gn(torch.relu(self.bn2(self.conv2(x)) + x)).mean((2, 3))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_compiled_convolutions(form, fused):
    theirs = _Convolutions().to(memory_format=form)
    ours = copy.deepcopy(theirs)
    ours = nft.fuse_norms(ours) if fused else nft.replace_norms(ours)
    compiled = torch.compile(ours, fullgraph=True)
    for rows in (2, 3, 5):
        x = torch.randn(rows, 3, 9, 7).to(memory_format=form)
        results = []
        for module in (compiled, theirs):
            given = x.clone().requires_grad_()
            module.zero_grad()
            y = module(given)
            y.square().sum().backward()
            results.append((y, given.grad))
        for mine, other in zip(*results):
            torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-3)
        parameters = dict(ours.named_parameters())
        for name, other in theirs.named_parameters():
            torch.testing.assert_close(parameters[name].grad, other.grad, atol=1e-3, rtol=1e-3)
    ours.eval(), theirs.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), theirs(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layer", ["BatchNorm2d", "LayerNorm", "GroupNorm", "RMSNorm"])
def test_compile_in_one_graph(layer):
    make, shape = LAYERS[layer]
    ours, theirs = pair(make)
    compiled = torch.compile(ours, fullgraph=True)
    for rows in (shape[0], shape[0] + 1, shape[0] + 2):
        x = torch.randn(rows, *shape[1:])
        results = []
        for module in (compiled, theirs):
            given = x.clone().requires_grad_()
            y = module(given)
            y.square().sum().backward()
            results.append((y, given.grad))
        for mine, other in zip(*results):
            torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)
    for mine, other in zip(ours.buffers(), theirs.buffers()):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


def test_replace_and_restore():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.GroupNorm(2, 8))
    before = [type(module) for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    nft.replace_norms(model)
    assert isinstance(model[1], nn.BatchNorm2d)
    again = pickle.loads(pickle.dumps(model))
    assert type(again[1]) is type(model[1])
    assert [type(module) for module in nft.restore_norms(model).modules()] == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_what_kernels_do_not_take_is_pytorchs():
    ours, theirs = pair(lambda: nn.LayerNorm(48))
    x = torch.randn(4, 48)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ours(x), theirs(x))
    with pytest.raises(RuntimeError):  # PyTorch's own
        ours(torch.randn(4, 47))
    batch = nft.replace_norms(nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        batch(torch.randn(1, 3))


def in_child(queue):
    layer = nft.replace_norms(nn.LayerNorm(48))
    queue.put(layer(torch.ones(4, 48)).sum().item())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children(method):
    layer = nft.replace_norms(nn.LayerNorm(48))
    layer(torch.randn(4, 48))
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=in_child, args=(queue,))
    child.start()
    assert queue.get(timeout=60) == 0
    child.join()


class Block(nn.Module):
    """Of a residual network."""

    def __init__(self, channels, activation):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.activation = activation

    def forward(self, x):
        y = self.activation(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        return self.activation(y)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.GELU(), nn.SiLU(), nn.Tanh()])
def test_fused(activation, form):
    torch.manual_seed(0)
    theirs = nn.Sequential(Block(8, activation), nn.GroupNorm(2, 8), nn.Hardswish(), Block(8, activation))
    ours = nft.fuse_norms(copy.deepcopy(theirs))
    called = [node.target for node in ours.graph.nodes if node.op.startswith("call")]
    assert called == ["0.conv1", "0.bn1", "0.conv2", "0.bn2", "1", "3.conv1", "3.bn1", "3.conv2", "3.bn2"]
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for _ in range(2):
        x = torch.randn(3, 8, 5, 5).to(memory_format=form)
        dy = torch.randn(3, 8, 5, 5)
        results = []
        for model in (ours, theirs):
            model.zero_grad()
            given = x.clone(memory_format=torch.preserve_format).requires_grad_()
            y = model(given)
            y.backward(dy)
            results.append((y, given.grad, *(p.grad for p in model.parameters())))
        for mine, other in zip(*results):
            torch.testing.assert_close(mine, other, atol=2e-4, rtol=2e-4)
    ours.eval(), theirs.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-4)


def test_fused_in_one_graph():
    theirs = nn.Sequential(Block(8, nn.ReLU()), Block(8, nn.GELU()))
    ours = torch.compile(nft.fuse_norms(copy.deepcopy(theirs)), fullgraph=True)
    for rows in (2, 3, 4):
        x = torch.randn(rows, 8, 4, 4)
        results = []
        for model in (ours, theirs):
            given = x.clone().requires_grad_()
            model(given).square().sum().backward()
            results.append(given.grad)
        torch.testing.assert_close(*results, atol=1e-3, rtol=1e-3)


def test_what_is_not_fused():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(8)
            self.twice = nn.LayerNorm(8)
            self.wide = nn.LayerNorm(8)
            self.number = nn.LayerNorm(8)

        def forward(self, x):
            y = self.norm(x)  # used twice
            y = torch.relu(y) + y
            y = torch.relu(self.twice(torch.relu(self.twice(y))))
            y = self.number(y) + 1
            return torch.relu(self.wide(y) + x.sum(0))  # an addend that is broadcast

    torch.manual_seed(0)
    theirs = Odd()
    ours = nft.fuse_norms(copy.deepcopy(theirs))
    assert [getattr(ours, n)._fused for n in ("norm", "twice", "number", "wide")] == [
        (),
        (),
        (),
        ("add", "relu"),
    ]
    x = torch.randn(4, 8)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="fuse_norms is not undone"):
        nft.restore_norms(ours)


def both(make, change=lambda m: None, x=None, train=True):
    """Results of our layer and PyTorch's, the same errors among them."""
    results = []
    for ours in (True, False):
        torch.manual_seed(3)
        layer = make()
        if ours:
            nft.replace_norms(layer)
        layer.train(train)
        with contextlib.suppress(RuntimeError, ValueError):
            layer(torch.randn(2, *x.shape[1:]))
        change(layer)
        try:
            results.append(layer(x))
        except Exception as error:  # noqa: BLE001
            results.append(type(error))
    return results


def check(make, change=lambda m: None, x=None, train=True):
    mine, other = both(make, change, torch.randn(3, 8, 4) if x is None else x, train)
    if isinstance(other, type):
        assert mine is other
    else:
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


def test_layers_that_are_changed_after_a_call():
    check(lambda: nn.GroupNorm(2, 8), lambda m: setattr(m, "num_groups", 4))
    check(lambda: nn.LayerNorm(4), lambda m: setattr(m, "eps", 0.5))
    check(lambda: nn.LayerNorm(4), lambda m: setattr(m, "eps", 0.0))
    check(lambda: nn.BatchNorm1d(8), lambda m: setattr(m, "track_running_stats", False))
    check(lambda: nn.LayerNorm(4), x=torch.randn(3, 8, 5))
    check(lambda: nn.LayerNorm(4), lambda m: m.double())
    layer = nft.replace_norms(nn.BatchNorm1d(8))
    layer.track_running_stats = False
    before = layer.running_mean.clone()
    layer(torch.randn(3, 8))
    assert torch.equal(layer.running_mean, before) and layer.num_batches_tracked == 0


def test_odd_inputs():
    for make in (lambda: nn.LayerNorm(4), lambda: nn.GroupNorm(2, 8), lambda: nn.BatchNorm1d(8)):
        check(make, x=torch.randn(0, 8, 4), train=False)
        check(make, x=torch.randn(3, 8, 4).mT.contiguous().mT)
        check(make, x=torch._neg_view(torch.randn(3, 8, 4)))
        check(make, lambda m: setattr(m, "weight", nn.Parameter(torch.randn(4 * len(m.weight))[::4])))
    check(lambda: nn.BatchNorm1d(8, track_running_stats=False), x=torch.randn(1, 8), train=False)
    check(lambda: nn.InstanceNorm1d(8), x=torch.randn(2, 8, 0))


def test_computed_parameters():
    import torch.nn.utils.prune as prune

    check(lambda: nn.LayerNorm(4), lambda m: prune.random_unstructured(m, "weight", 0.5))


def test_transforms():
    theirs = nn.LayerNorm(4).requires_grad_(False)
    ours = nft.replace_norms(copy.deepcopy(theirs))
    x, t = torch.randn(3, 4), torch.randn(3, 4)
    for mine, other in zip(
        torch.func.jvp(ours, (x,), (t,)), torch.func.jvp(theirs, (x,), (t,))
    ):
        torch.testing.assert_close(mine, other)
    xs = torch.randn(5, 3, 4)
    torch.testing.assert_close(torch.vmap(ours)(xs), torch.vmap(theirs)(xs))
    torch.testing.assert_close(
        torch.autograd.functional.jacobian(ours, x), torch.autograd.functional.jacobian(theirs, x)
    )
    with pytest.raises(NotImplementedError, match="no batches of gradients at once"):
        torch.autograd.functional.jacobian(ours, x, vectorize=True)
    weights = {name: p.detach() for name, p in theirs.named_parameters()}
    for mine, other in zip(
        *(
            torch.func.grad(lambda p: torch.func.functional_call(m, p, (x,)).square().sum())(
                weights
            ).values()
            for m in (ours, theirs)
        )
    ):
        torch.testing.assert_close(mine, other)
    traced = torch.jit.trace(lambda x: x + ours(x), (x,))
    torch.testing.assert_close(traced(t), t + theirs(t))


def test_fusing_leaves_the_model_and_what_is_fused():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU(), nn.LayerNorm(8), nn.ReLU())
    x = torch.randn(4, 8)
    before = model(x)
    once = nft.fuse_norms(model)
    assert type(model[1]) is nn.LayerNorm
    torch.testing.assert_close(model(x), before)
    torch.testing.assert_close(once(x), before, atol=1e-5, rtol=1e-5)
    assert once.get_submodule("1").weight is model[1].weight
    torch.testing.assert_close(nft.fuse_norms(once)(x), before, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        nft.fuse_norms(nn.Sequential(once, nn.ReLU()))(x), before, atol=1e-5, rtol=1e-5
    )
    with pytest.raises(ValueError, match="a model that has norms within it"):
        nft.fuse_norms(nn.LayerNorm(8))
    seen = []
    model[2].register_forward_hook(lambda *a: seen.append(1))
    hooked = nft.fuse_norms(model)
    hooked(x)
    assert seen and hooked.get_submodule("1")._fused == ()


def test_writes_between_are_not_passed():
    class Late(nn.Module):
        def __init__(self, how):
            super().__init__()
            self.norm, self.relu, self.how = nn.LayerNorm(8), nn.ReLU(inplace=True), how

        def forward(self, x):
            h = x * 1
            if self.how == 0:  # the norm's input is changed before its result is used
                n = self.norm(h)
                r = self.relu(h)
                return n + r
            if self.how == 1:
                n = self.norm(h)
                h.add_(3)
                return torch.relu(n) + h
            if self.how == 2:  # the sum goes into h
                h.add_(self.norm(h))
                return h
            h += self.norm(h)
            return h * 2

    x = torch.randn(4, 8)
    for how in range(4):
        model = Late(how).eval()
        with torch.no_grad():
            torch.testing.assert_close(
                nft.fuse_norms(model)(x), model(x), atol=1e-5, rtol=1e-5, msg=str(how)
            )


def test_group_norm_of_groups_of_one():
    ours, theirs = pair(lambda: nn.GroupNorm(3, 3))
    for layer in (ours, theirs):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            layer(torch.randn(1, 3))


def test_a_tensor_without_data():
    with pytest.raises(ValueError, match="^an array cannot be read: Cannot pack tensors on meta$"):
        nf.layer_norm(8)(x=torch.zeros(2, 8, device="meta"), gamma=torch.ones(8), beta=torch.ones(8))
