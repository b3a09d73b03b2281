"""Gradients against finite differences of the loss, in float64 where rounding cannot hide an error.

PyTorch chooses its kernels by strides, and an axis of one element may have any stride: the batch
axis of one image, an axis of a map of one row or one column. So the sizes here have such axes.
"""

import copy
import dataclasses
import itertools

import pytest
import torch
import torch.distributed as dist
from torch import nn

from cvt.fast.network import Folded
from cvt.fast.training import TrainingForm
from cvt.model import ConvAttention, CvT, join, split
from cvt.networks.baselines import resnet, vit
from cvt.networks.supernet import Supernet
from cvt.networks.surgery import freeze_batchnorm, swap
from cvt.train.processes import SyncBatchNorm2d

pytestmark = pytest.mark.slow

PROJECTIONS = {
    "conv": {},
    "conv, stride_kv 1": {"stride_kv": 1},
    "avg": {"projection": "avg"},
    "avg, stride_kv 1": {"projection": "avg", "stride_kv": 1},
    "linear": {"projection": "linear", "stride_kv": 1},
}
CLS_TOKENS = [(), (0,), (1,), (2,), (0, 1, 2)]  # the stages that have one
# Height and width: odd and not square; then maps of one row, of one column, of one token in every
# stage; then in some.
SIZES = [(35, 51), (4, 64), (64, 4), (4, 4), (16, 24)]
SHAPES = [*((1, 3, *size) for size in SIZES), (2, 3, 35, 51), (2, 3, 4, 4), (3, 3, 16, 24)]


@pytest.fixture
def network(tiny, shaken):
    """network(fields, cls_tokens, **whole): a float64 model with class tokens in `cls_tokens`."""
    def build(fields=None, cls_tokens=(2,), **whole):
        config = tiny(every=fields, **{"depths": (1, 1, 1), **whole})
        stages = tuple(dataclasses.replace(stage, cls_token=i in cls_tokens)
                       for i, stage in enumerate(config.stages))
        return shaken(CvT(dataclasses.replace(config, stages=stages))).double()

    return build


@pytest.fixture
def one_process():
    """The collectives of a group of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def images(*shape):
    return torch.randn(shape, dtype=torch.float64)


def trainable(config, shape):
    """Whether every BatchNorm sees two values of a channel or more, as its variance needs."""
    batch, _, *size = shape
    return all(batch * height * width > 1
               for stage, grid in zip(config.stages, config.grids(size), strict=True)
               for height, width in (grid, *stage.grids_kv(grid)))


def loss(form, x):
    """A weighted sum of the logits (B, K) that `form` gives for x."""
    logits = form(x)
    return (logits @ torch.linspace(-1, 2, logits.shape[1], dtype=logits.dtype)).sum()


def gradients(model, x, form):
    """The loss's gradients, the input's first and then each parameter's, by `form` of `model`."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(loss(form, x), [x, *model.parameters()], materialize_grads=True)


def finite_difference(model, x, direction, step):
    """The loss's derivative, of fourth order, in a direction of input and parameters together."""
    point = [x.clone(), *(p.detach() for p in model.parameters())]
    total, at = 0.0, 0
    with torch.no_grad():
        for steps, weight in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
            torch._foreach_add_(point, direction, alpha=(steps - at) * step)
            total, at = total + weight * loss(model, point[0]).item(), steps
        torch._foreach_add_(point, direction, alpha=-at * step)
    return total / (12 * step)


def assert_finite_differences(model, x, *forms, step=2e-6):
    """The gradients of the model, and of every one of its forms, are finite differences' own."""
    found = [gradients(model, x, form) for form in (model, *forms)]
    direction = [torch.randn_like(tensor) for tensor in found[0]]
    # Up in every tensor, so that no parts cancel and leave a difference of nothing but rounding.
    direction = [d if (g * d).sum() >= 0 else -d for d, g in zip(direction, found[0], strict=True)]

    expected = finite_difference(model, x, direction, step)

    for each in found:
        slope = sum((g * d).sum().item() for g, d in zip(each, direction, strict=True))
        assert slope == pytest.approx(expected, rel=1e-6, abs=0)


def relative(found, expected):
    """The distance of lists of tensors, as a share of the length of `expected`."""
    norm = nn.utils.get_total_norm
    return (norm([a - b for a, b in zip(found, expected, strict=True)]) / norm(expected)).item()


def laid_out(x, order):
    """A copy of x whose axes lie in memory in this order, from the outermost."""
    return x.permute(order).contiguous().permute([order.index(i) for i in range(x.ndim)])


def checkpointing(model, form):
    """`form` with every block computed again in the backward pass."""
    def run(x):
        model.set_grad_checkpointing(True)
        logits = form(x)
        model.set_grad_checkpointing(False)
        return logits

    return run


@pytest.mark.parametrize("cls_tokens", CLS_TOKENS)
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_gradients_in_evaluation_are_finite_differences(network, projection, cls_tokens):
    model = network(PROJECTIONS[projection], cls_tokens).eval()

    for shape in SHAPES:
        assert_finite_differences(model, images(*shape), TrainingForm(model))


@pytest.mark.parametrize("cls_tokens", CLS_TOKENS)
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_gradients_in_training_are_finite_differences(network, projection, cls_tokens):
    model = network(PROJECTIONS[projection], cls_tokens).train()
    form = TrainingForm(model)

    for shape in SHAPES:
        if trainable(model.config, shape):
            assert_finite_differences(model, images(*shape), form, checkpointing(model, model),
                                      checkpointing(model, form))


@pytest.mark.parametrize("fields", [
    {"pos_embed": True}, {"kernel": 5, "padding_kv": 2}, {"stride_kv": 3},
    {"projection": "avg", "kernel": 5, "stride_kv": 3}, {"qkv_bias": False},
    {"embed": "patch", "embed_kernel": 2, "embed_stride": 2, "embed_padding": 0}])
@pytest.mark.parametrize("cls_tokens", [(), (0, 1, 2)])
def test_gradients_of_other_configurations_are_finite_differences(network, fields, cls_tokens):
    model = network(fields, cls_tokens, depths=(1, 2, 2), act="gelu")

    for shape in ((1, 3, 44, 59), (3, 3, 48, 40)):
        for training in (False, True):
            assert_finite_differences(model.train(training), images(*shape), TrainingForm(model))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("cls_tokens", [(), (2,), (0, 1, 2)])
def test_each_gradient_of_one_image_is_half_that_of_two_copies(network, dtype, bound, cls_tokens):
    model = network({}, cls_tokens, depths=(1, 1, 2)).to(dtype).eval()
    for size in SIZES:
        x = images(1, 3, *size).to(dtype)

        twice = gradients(model, x.expand(2, -1, -1, -1), model)
        expected = [twice[0][:1], *(gradient / 2 for gradient in twice[1:])]

        for form in (model, TrainingForm(model)):
            for found, wanted in zip(gradients(model, x, form), expected, strict=True):
                assert (found - wanted).norm() <= bound * (1 + wanted.norm())


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("training", [False, True])
def test_gradients_in_float32_and_bfloat16_are_near_those_in_float64(network, batch, training):
    model = network({}, depths=(1, 1, 2)).train(training)
    x = images(batch, 3, 75, 53)
    expected = gradients(model, x, model)
    model.float()

    for form in (model, TrainingForm(model)):
        single = gradients(model, x.float(), form)
        with torch.autocast("cpu", torch.bfloat16):
            half = gradients(model, x.float(), form)

        assert relative([g.double() for g in single], expected) < 1e-4
        assert relative([g.double() for g in half], expected) < 0.1


@pytest.mark.parametrize(("backend", "training"), [
    ("aot_eager", False), ("aot_eager", True), ("inductor", True)])
def test_gradients_of_a_compiled_network_are_finite_differences(tiny, shaken, backend,
                                                                 training):
    torch._dynamo.reset()
    config = tiny()  # of which the last stage alone, for compiling takes long
    stage = dataclasses.replace(config.stages[2], depth=1)
    model = shaken(CvT(dataclasses.replace(config, stages=(stage,)))).double().train(training)

    form = torch.compile(TrainingForm(model), fullgraph=True, backend=backend)

    # What another ATEN_CPU_CAPABILITY left in the cache cannot be compiled with this one.
    with torch._inductor.config.patch(fx_graph_cache=False):
        assert_finite_differences(model, images(1, 3, 9, 14), form)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_a_supernet_are_finite_differences(tiny, shaken, training):
    config = tiny(every={"cls_token": True}, depths=(1, 1, 1))
    supernet = shaken(Supernet(config)).double().train(training)
    supernet.choice = ((2, 2.0), (1, 4.0), (2, 4.0))

    for batch in (1, 2):
        assert_finite_differences(supernet, images(batch, 3, 43, 51))


def test_gradients_with_frozen_or_folded_batch_norm_are_finite_differences(network):
    model = network(cls_tokens=(0, 1, 2)).eval()

    for shape in SHAPES:
        assert_finite_differences(Folded(model), images(*shape))
    freeze_batchnorm(model)
    for shape in SHAPES:
        assert_finite_differences(model, images(*shape), TrainingForm(model))


@pytest.mark.filterwarnings("ignore:torch.distributed.nn.functional.all_gather is deprecated")
@pytest.mark.parametrize("training", [False, True])
def test_gradients_with_synchronised_batch_norm_are_those_without(network, one_process, training):
    model = network(cls_tokens=(0, 1, 2)).train(training).float()
    synced = swap(copy.deepcopy(model), nn.BatchNorm2d, SyncBatchNorm2d.of)
    for batch in (1, 2):
        x = images(batch, 3, 35, 51).float()

        assert relative(gradients(synced, x, synced), gradients(model, x, model)) < 1e-4


@pytest.mark.parametrize("make", [CvT, resnet, vit])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_do_not_depend_on_how_images_lie_in_memory(tiny, shaken, make, layout):
    model = shaken(make(tiny(depths=(1, 1, 1)))).double()
    for training in (False, True):
        for batch in (1, 2):
            x = images(batch, 3, 64, 64).contiguous(memory_format=layout)

            # A small step, for the ResNet has kinks.
            assert_finite_differences(model.train(training), x, step=1e-7)


@pytest.mark.parametrize("grid", [(3, 4), (1, 5), (5, 1), (1, 1)])
@pytest.mark.parametrize("fields", PROJECTIONS.values(), ids=PROJECTIONS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_gradients_of_a_projection_do_not_depend_on_strides(tiny, shaken, dtype, bound, fields,
                                                            grid):
    """Of a map that comes in, and of a gradient that comes back."""
    key = shaken(ConvAttention(tiny(every=fields).stages[1]).k).to(dtype).eval()
    cls, fmap = images(1, 1, 16).to(dtype), images(1, 16, *grid).to(dtype)
    along = torch.randn_like(key(cls, fmap))
    found = []
    for order in itertools.permutations(range(4)):
        x = laid_out(fmap, order).requires_grad_()
        for tokens in itertools.permutations(range(3)):
            gradient = laid_out(along, tokens)
            cls_first = torch.autograd.grad(key(cls, x), [x, *key.parameters()], gradient)
            alone = torch.autograd.grad(key(None, x), [x, *key.parameters()], gradient[:, 1:])
            found.append((cls_first, alone))

    for each in found[1:]:
        torch.testing.assert_close(each, found[0], rtol=bound, atol=bound)


@pytest.mark.parametrize("grid", [(3, 4), (1, 5), (5, 1), (1, 1)])
@pytest.mark.parametrize("cls_token", [False, True])
def test_a_map_of_one_image_and_its_gradient_are_known_as_channels_last(grid, cls_token):
    """By their strides, which must be those of a channels-last map that PyTorch makes itself."""
    x = torch.randn(1, cls_token + grid[0] * grid[1], 8)
    cls, fmap = split(x, grid, cls_token)
    gradient, = torch.autograd.grad(join(cls, fmap.requires_grad_()), fmap, torch.randn_like(x))
    made = torch.empty(fmap.shape, memory_format=torch.channels_last)

    assert fmap.stride() == gradient.stride() == made.stride()
