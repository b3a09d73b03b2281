import copy

import pytest
import torch
import torch.nn.functional as F

from cvt.config import VARIANTS
from cvt.data.randomness import seed_all
from cvt.model import DropPath
from cvt.networks.supernet import GENES, Supernet, choice_of, chosen
from cvt.system.errors import InputError
from cvt.train.config import OptimConfig
from cvt.train.engine import Engine
from cvt.train.optim import build_optimizer
from cvt.train.recipe import Recipe

MIXED = ((2, 2.0), (1, 4.0), (1, 2.0), (2, 4.0))


@pytest.fixture
def supernet(tiny, shaken):
    return shaken(Supernet(tiny(last={"drop_path_rate": 0.2})))


def images(batch=3):
    return torch.randn(batch, 3, 64, 64)


def test_a_choice_is_a_configuration_and_back(tiny):
    config = chosen(tiny(), MIXED)

    assert choice_of(config) == MIXED
    assert [stage.stride_kv for stage in config.stages] == [2, 1, (1, 2)]
    assert [stage.mlp_ratio for stage in config.stages] == [2.0, 4.0, (2.0, 4.0)]
    assert chosen(config, choice_of(tiny())) == tiny()


@pytest.mark.parametrize("choice", [((1, 2.0),) * 4, ((2, 4.0),) * 4, MIXED])
def test_a_network_taken_out_gives_the_logits_of_the_supernet(supernet, choice):
    x = images()
    supernet.eval().choice = choice

    network = supernet.extract(choice)

    assert network.config == chosen(supernet.config, choice)
    assert not network.training
    torch.testing.assert_close(network(x), supernet(x))


def test_what_is_taken_out_is_a_copy(supernet):
    before = copy.deepcopy(supernet.state_dict())
    network = supernet.extract(MIXED)

    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()

    assert all(torch.equal(t, before[name]) for name, t in supernet.state_dict().items())


def test_the_largest_network_is_evaluated_unless_another_is_set(supernet):
    supernet.eval()
    x = images()

    torch.testing.assert_close(supernet(x), supernet.extract(((1, 4.0),) * 4)(x))


def test_training_goes_through_the_network_that_was_drawn_last(supernet):
    x = images()
    supernet.train()
    for module in supernet.modules():
        if isinstance(module, (torch.nn.BatchNorm2d, DropPath)):
            module.eval()
    torch.testing.assert_close(supernet(x), supernet.extract(supernet.largest).eval()(x))

    drawn = supernet.draw()

    network = supernet.extract(drawn).eval()
    for _ in range(2):
        torch.testing.assert_close(supernet(x), network(x))
    assert drawn != supernet.largest


def step_of(engine, net):
    """The network drawn in step 3, by SGD at a learning rate of 1, and how parameters moved."""
    engine.prepare(net, build_optimizer(net, engine.recipe.optim), Summed(), 10)
    engine.train_mode()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    engine.step((batch(), torch.arange(8)), 1.0, 3)
    return net.drawn, {name: before[name] - p.detach() for name, p in net.named_parameters()}


def batch():
    torch.manual_seed(4)
    return images(8).double()


class Summed(torch.nn.Module):
    """A loss: the logits of the images' labels, summed."""

    def forward(self, _, logits, labels):
        return logits[range(len(labels)), labels].sum()


def still(accumulate=1):
    return Recipe(network="supernet", batch_size=8, device="cpu", optim=OptimConfig(
        name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0, grad_accum_steps=accumulate))


def test_the_parts_of_a_batch_train_one_network_which_is_drawn_once_a_step(tiny, shaken):
    net = shaken(Supernet(tiny()).double())
    twin = copy.deepcopy(net)
    with Engine(still(accumulate=4)) as engine:
        drawn, moved = step_of(engine, net)

    seed_all(0, 3)
    assert drawn == twin.draw()
    network = twin.extract(drawn).train()
    x = batch()
    for i in range(0, 8, 2):
        logits = network(x[i:i + 2])
        ((logits[0, i] + logits[1, i + 1]) / 4).backward()
    grads = {name: p.grad for name, p in network.named_parameters()}
    strides = {f"stages.{s}.blocks.{b}.attn.{kind}.bn": drawn[place][0] for place, (s, b) in
               enumerate(((0, 0), (1, 0), (2, 0), (2, 1))) for kind in "kv"}
    for name, change in moved.items():
        module, _, last = name.removeprefix("model.").rpartition(".")
        norm, _, stride = module.rpartition(".")
        if norm in strides:
            same = int(stride) == strides[norm]
            expected = grads[f"{norm}.{last}"] if same else torch.zeros_like(change)
        else:
            grad = grads[f"{module}.{last}"]
            expected = torch.zeros_like(change)
            expected[tuple(slice(n) for n in grad.shape)] = grad
        torch.testing.assert_close(change, expected, rtol=1e-9, atol=1e-12)


def test_a_batch_that_is_split_for_want_of_memory_trains_the_network_of_the_whole_one(
        tiny, monkeypatch):
    results = []
    for accumulate, fits in ((2, 8), (1, 4)):
        torch.manual_seed(0)
        net, forward = Supernet(tiny()).double(), Supernet.forward

        def limited(self, x, fits=fits, forward=forward):
            if len(x) > fits:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return forward(self, x)

        with monkeypatch.context() as patch, Engine(still(accumulate)) as engine:
            patch.setattr(Supernet, "forward", limited)
            results.append(step_of(engine, net))
            assert engine.accum_steps == 2

    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_every_training_step_draws_a_network_from_the_global_random_state(supernet):
    torch.manual_seed(5)
    drawn = [supernet.draw() for _ in range(400)]
    torch.manual_seed(5)

    assert [supernet.draw() for _ in range(400)] == drawn
    for block in range(4):
        genes = [choice[block] for choice in drawn]
        assert all(70 < genes.count(gene) < 130 for gene in GENES)


def test_a_training_step_trains_what_was_drawn_and_nothing_else(supernet):
    supernet.train().choice = ((2, 2.0),) * 4

    F.cross_entropy(supernet(images()), torch.tensor([1, 2, 3])).backward()

    block = supernet.model.stages[1].blocks[0]
    assert block.attn.k.bn["1"].weight.grad is None
    assert block.attn.k.bn["2"].weight.grad is not None
    assert (block.mlp.fc1.weight.grad[:32] != 0).any()
    assert (block.mlp.fc1.weight.grad[32:] == 0).all()
    assert block.attn.k.bn["1"].num_batches_tracked == 7  # as it was
    assert block.attn.k.bn["2"].num_batches_tracked == 8


def test_steps_of_the_optimiser_leave_what_was_not_drawn(supernet):
    optimizer = build_optimizer(supernet.train(), OptimConfig(lr=0.1, weight_decay=0.5))
    supernet.choice = ((2, 2.0),) * 4
    bn = supernet.model.stages[0].blocks[0].attn.v.bn["1"]
    before = bn.weight.clone()

    for _ in range(2):
        F.cross_entropy(supernet(images()), torch.tensor([1, 2, 3])).backward()
        optimizer.step()
        optimizer.zero_grad()

    assert torch.equal(bn.weight, before)


def test_checkpointing_computes_the_drawn_network_again(supernet):
    x, results = images(), []
    for enable in (False, True):
        twin = copy.deepcopy(supernet).double().train()
        twin.set_grad_checkpointing(enable)
        torch.manual_seed(3)
        twin.draw()
        F.cross_entropy(twin(x.double()), torch.tensor([1, 2, 3])).backward()
        results.append(({n: p.grad for n, p in twin.named_parameters() if p.grad is not None},
                        dict(twin.named_buffers())))

    torch.testing.assert_close(results[1], results[0])


def test_class_tokens_and_position_embeddings_do_not_decay(tiny):
    names = Supernet(tiny(last={"pos_embed": True})).no_weight_decay()

    assert names == {"model.stages.2.cls_token", "model.stages.2.pos_embed"}


def test_the_supernet_has_the_weights_of_its_largest_network_and_a_batchnorm_for_each_stride():
    config = VARIANTS["cvt_nano"]
    with torch.device("meta"):
        supernet = Supernet(config)
    largest = sum(p.numel() for p in supernet.extract(supernet.largest).parameters())
    more = sum(2 * 2 * stage.dim * stage.depth for stage in config.stages)  # keys' and values'

    assert sum(p.numel() for p in supernet.parameters()) == largest + more


def test_a_projection_without_a_convolution_has_nothing_to_search(tiny):
    with pytest.raises(InputError, match=r"projection='avg' in stage 1 .* use 'conv'"):
        Supernet(tiny(every={"projection": "avg"}))


def test_several_processes_do_not_train_one(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"2 processes would wait .* start one"):
        Engine(Recipe(network="supernet"))
