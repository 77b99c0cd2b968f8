"""Tensors in any object: by the tree or by pickle, in the slot and never by descriptor."""

from __future__ import annotations

import gc
import os
import textwrap
import warnings
from typing import Any

import numpy as np
import pytest
from support import python

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.nn.utils.rnn import PackedSequence, pack_sequence  # noqa: E402

import shmtensor as st  # noqa: E402
from shmtensor._codec import decode_from_array, encode_to_array  # noqa: E402

DTYPES = [d for d in vars(torch).values() if isinstance(d, torch.dtype)]
TREE, PICKLED = 1, 2


def round_trip(x: Any, copy: bool = False) -> Any:
    return decode_from_array(encode_to_array(x), copy=copy)


def raw(t: Any) -> bytes:
    return bytes(t.detach().contiguous().reshape(-1).view(torch.uint8).numpy()) if t.numel() else b""


def usable(dtype: Any) -> bool:
    try:
        torch.zeros(8, dtype=torch.uint8).view(dtype)
    except (RuntimeError, NotImplementedError):
        return False
    return not str(dtype).startswith("torch.q")


@pytest.mark.parametrize("dtype", sorted({d for d in DTYPES if usable(d)}, key=str), ids=str)
@pytest.mark.parametrize("n", [0, 8, 8000])
def test_dtypes(dtype: Any, n: int) -> None:
    torch.manual_seed(n)
    x = torch.randint(0, 2, (n,), dtype=torch.uint8).view(dtype)
    for y in (round_trip(x), round_trip({1: x})[1], round_trip([x], copy=True)[0]):
        assert (y.dtype, y.shape) == (x.dtype, x.shape)
        assert raw(y) == raw(x)


BASE = torch.arange(2 * 3 * 40 * 50, dtype=torch.float32).reshape(2, 3, 40, 50)
LAYOUTS = {
    "plain": BASE,
    "channels last": BASE.to(memory_format=torch.channels_last),
    "transposed": BASE.transpose(1, 3),
    "sliced": BASE[:, :, ::3],
    "one number": torch.tensor(7.5),
    "empty": BASE[:0],
    "requires grad": BASE.clone().requires_grad_(),
    "small": torch.ones(2, 3).T,
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: [x, {1}]], ids=["tree", "pickle"])
def test_layouts(name: str, wrap: Any) -> None:
    x = LAYOUTS[name]
    y = round_trip(wrap(x))[0]
    assert torch.equal(x, y)
    assert y.requires_grad == x.requires_grad
    if name != "sliced":
        assert y.stride() == x.stride()


def test_expanded_tensors_are_written_out() -> None:
    x = torch.arange(3.0).expand(4, 3)
    y = round_trip(x)
    assert torch.equal(x, y)
    assert y.stride() == (3, 1)


def test_lazy_bits_are_resolved() -> None:
    x = torch.tensor([1 + 2j, 3 - 1j]).conj()
    assert torch.equal(round_trip(x), x.resolve_conj())
    assert torch.equal(round_trip({1: x.imag})[1], x.imag)


def test_parameters_and_subclasses() -> None:
    p = torch.nn.Parameter(torch.randn(3), requires_grad=False)
    q = round_trip(p)
    assert type(q) is torch.nn.Parameter
    assert not q.requires_grad
    assert torch.equal(p, q)

    state = torch.nn.Linear(30, 40).state_dict()
    back = round_trip(state)
    assert type(back) is type(state)
    assert all(torch.equal(state[k], back[k]) for k in state)


class Tagged(torch.Tensor):
    pass


def test_a_subclass_keeps_its_class_and_attributes() -> None:
    x = torch.randn(5).as_subclass(Tagged)
    x.label = "cat"
    y = round_trip([x])[0]
    assert type(y) is Tagged
    assert y.label == "cat"
    assert torch.equal(x.as_subclass(torch.Tensor), y.as_subclass(torch.Tensor))


def test_packed_sequences() -> None:
    x = pack_sequence([torch.arange(3.0), torch.arange(2.0)])
    y = round_trip(x)
    assert type(y) is PackedSequence
    assert torch.equal(x.data, y.data)
    assert torch.equal(x.batch_sizes, y.batch_sizes)


def test_sparse_tensors() -> None:
    x = torch.eye(200).to_sparse()
    assert torch.equal(round_trip(x).to_dense(), x.to_dense())


def test_what_is_part_of_a_graph_is_refused() -> None:
    x = torch.ones(3, requires_grad=True) * 2
    with pytest.raises(RuntimeError, match="detach"):
        encode_to_array(x)


def test_shared_tensors_stay_shared() -> None:
    x = torch.zeros(1000)
    a, b = round_trip([x, x])
    assert a is b


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("shared", [False, True], ids=["private", "in torch's shared memory"])
def test_no_tensor_travels_by_descriptor(shared: bool) -> None:
    x = torch.arange(5000.0)
    if shared:
        x.share_memory_()
    before = descriptors()
    message = encode_to_array([x, {1}, torch.nn.Parameter(x.clone())])
    back = decode_from_array(message)
    assert np.shares_memory(back[0].numpy(), message)
    assert not back[0].is_shared()
    assert descriptors() == before
    assert torch.equal(back[0], x)


def test_a_view_keeps_the_message() -> None:
    import weakref

    message = encode_to_array({"x": torch.arange(1000.0), "y": torch.arange(3.0)})
    back = decode_from_array(message)
    gone = weakref.ref(message)
    small, storage = back["y"], back["x"][5:].untyped_storage()
    del message, back
    gc.collect()
    assert gone() is not None
    assert storage.nbytes() >= 4000
    del storage
    gc.collect()
    assert gone() is None
    assert small.tolist() == [0, 1, 2]


def test_only_the_view_is_copied() -> None:
    big = torch.zeros(10**6)
    assert len(encode_to_array(big[:10])) < 1000
    assert len(encode_to_array([big[:1000], {1}])) < 20_000


def test_what_has_no_strides_is_not_shared_by_descriptor() -> None:
    storage = torch.arange(2000.0).untyped_storage()
    got = round_trip(storage)
    assert bytes(got) == bytes(storage)
    quantized = torch.quantize_per_tensor(torch.arange(3000.0), 0.5, 3, torch.quint8)
    assert torch.equal(round_trip(quantized).int_repr(), quantized.int_repr())
    typed = torch.arange(5.0).storage()
    assert list(round_trip(typed)) == list(typed)
    assert not (storage.is_shared() or quantized.is_shared() or typed.is_shared())


@pytest.mark.filterwarnings("error")
def test_a_typed_storage_is_sent_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        typed = torch.arange(5.0).storage()
    torch.storage._set_always_warn_typed_storage_removal(True)  # else once in a process
    try:
        got = round_trip([typed, {1}])[0]
    finally:
        torch.storage._set_always_warn_typed_storage_removal(False)
    assert got.dtype is typed.dtype and bytes(got._untyped_storage) == bytes(typed._untyped_storage)


def test_what_is_not_dense_is_packed_without_torch() -> None:
    """After OpenMP ran in its parent, a forked child hangs in whatever runs in several threads there."""
    code = """
        import os, signal, torch
        from shmtensor._codec import decode_from_array, encode_to_array
        torch.set_num_threads(4)
        x = torch.rand(3000, 1000)
        (x + 1).sum()
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            for y in (x.t()[::2], x[:, ::3], x.view(torch.int32)[::2, ::2]):
                back = decode_from_array(encode_to_array([y, {1}]))[0]
                assert (back.numpy() == y.numpy()).all()
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    assert python(textwrap.dedent(code), timeout=90) == "0\n"


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
def test_nested_tensors() -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.arange(3.0)])
    assert [t.tolist() for t in round_trip(nested).unbind()] == [t.tolist() for t in nested.unbind()]


@pytest.mark.parametrize("layout", ["sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc"])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.filterwarnings("ignore:Sparse .* support is in beta")
def test_sparse_tensors_keep_nothing_when_they_die(layout: str, grad: bool) -> None:
    """torch's own unpickling keeps each of them until the next torch.load()."""
    dense = torch.zeros(64, 64)
    dense[::3, ::5] = torch.arange(22 * 13, dtype=torch.float32).reshape(22, 13) + 1
    block = (8, 8) if "bs" in layout else None
    x = dense.to_sparse(layout=getattr(torch, layout), blocksize=block).requires_grad_(grad)
    queue = st.Queue()
    for uncoalesced in range(1 + (layout == "sparse_coo")):
        if uncoalesced:
            x = torch.sparse_coo_tensor(torch.tensor([[1, 1], [2, 2]]), torch.ones(2, 400), (4, 4, 400))
        queue.put({"x": x})
        y = queue.get()["x"]
        assert y.layout is x.layout and y.requires_grad == x.requires_grad and y.dtype is x.dtype
        assert layout != "sparse_coo" or y.is_coalesced() == x.is_coalesced()
        assert torch.equal(y.detach().to_dense(), x.detach().to_dense())
        del y
        assert queue.stats()["reading"] == 0
    queue.close()
