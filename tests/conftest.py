"""Fixtures: a tiny vision transformer and a tiny residual network as sources and as bases.

Fixtures import what they need: the process that hands tests out to others reads this file, too, and needs no torch.
"""

import signal

import pytest
from hypothesis import settings

# equal examples in every run, and no example fails because the machine is busy
settings.register_profile("recast", deadline=None, derandomize=True)
settings.load_profile("recast")
# imported for their helpers before they are loaded as plugins
pytest.register_assert_rewrite("fixtures")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Every test runs in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tensors this small are faster on one thread, by far where other processes want the cores too."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def _interruptible():
    """A shell's background jobs ignore Ctrl-C, and so would the processes that tests start to interrupt."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """No test sees or fills the user's cache of decoded images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def vit_folder(tmp_path_factory):
    """Folder of a vision transformer: 12 blocks, 32 channels, 32 px, 5 classes."""
    from helpers import save_folder

    return save_folder(tmp_path_factory.mktemp("vit") / "tiny-vit")


@pytest.fixture(scope="session")
def vit_source(vit_folder):
    from recast_cli.engine.source.open import open_source

    return open_source(str(vit_folder))


@pytest.fixture(scope="session")
def vit_base(vit_source):
    """48 coefficients, two templates a bank: what has to hold for one template holds for these."""
    from recast_cli.engine.layout.plan import plan_layout
    from recast_cli.engine.mimic.decompose.decompose import mimic

    return mimic(vit_source, plan_layout(vit_source.modules, layout="paper-attention"))


@pytest.fixture(scope="session")
def scaled_base(vit_source):
    """48 modules with a coefficient each."""
    from recast_cli.engine.layout.plan import plan_layout
    from recast_cli.engine.mimic.decompose.decompose import mimic

    return mimic(vit_source, plan_layout(vit_source.modules))


@pytest.fixture(scope="session")
def conv_source(tmp_path_factory):
    """A residual network with batch norm, 5 classes."""
    from helpers import CONV, CONV_ARGS, save_folder

    from recast_cli.engine.source.open import open_source

    return open_source(str(save_folder(tmp_path_factory.mktemp("conv") / "tiny-conv", CONV, CONV_ARGS)))


@pytest.fixture(scope="session")
def conv_base(conv_source):
    from recast_cli.engine.layout.plan import plan_layout
    from recast_cli.engine.mimic.decompose.decompose import mimic

    return mimic(conv_source, plan_layout(conv_source.modules, sets=2))


@pytest.fixture(scope="module")
def weak_probe():
    """A linear probe that knows nothing, so that an epoch of training is always better and the coefficients move."""
    import torch

    from recast_cli.engine.adapt.linear_probe import Probe
    from recast_cli.engine.task.head import Head

    def know_nothing(train, val, classes, class_weights=None):
        return Probe(Head(torch.zeros(classes, train[0].shape[1]), torch.zeros(classes)), 1.0, 0.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recast_cli.engine.adapt.fit.fit_probe", know_nothing)
        yield


@pytest.fixture(scope="module")
def every_epoch_counts():
    """Every epoch is as good on validation as any, so that the last one is chosen, whatever so few images say."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recast_cli.engine.adapt.loop.top_k", lambda logits, labels: 1.0)
        patch.setattr("recast_cli.engine.adapt.fit.as_good", lambda accuracy, highest, images: True)
        yield


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Three classes of twelve images, without any split."""
    from helpers import draw_images

    return draw_images(tmp_path_factory.mktemp("data") / "colours")
