import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from cvt.model import CvT
from cvt.networks.surgery import swap
from cvt.train.processes import SyncBatchNorm2d

pytestmark = pytest.mark.slow


@pytest.fixture
def _alone(tmp_path):
    """A group of one process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_alone")
@pytest.mark.filterwarnings("ignore:.*all_gather is deprecated:FutureWarning")
def test_checkpointing_counts_a_batch_once(tiny, shaken):
    model, x = shaken(CvT(tiny())).train(), torch.randn(4, 3, 64, 64)
    swap(model, nn.BatchNorm2d, SyncBatchNorm2d.of)
    results = []
    for enable in (False, True):
        twin = copy.deepcopy(model)
        twin.set_grad_checkpointing(enable)
        twin(x).square().sum().backward()
        results.append(({name: p.grad for name, p in twin.named_parameters()},
                        dict(twin.named_buffers())))
    torch.testing.assert_close(results[1], results[0])
