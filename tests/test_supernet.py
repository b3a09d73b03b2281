import copy

import pytest
import torch
import torch.nn.functional as F

from cvt.config import VARIANTS
from cvt.errors import InputError
from cvt.supernet import GENES, Supernet, choice_of, chosen
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
