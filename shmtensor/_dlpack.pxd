# _dlpack.pxd - the structs of DLPack 1.x (dmlc/dlpack, include/dlpack/dlpack.h), declared here so that no header of
# another package is needed. The layout is DLPack's ABI and does not change within a major version.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    kDLCPU = 1
    DLPACK_READ_ONLY = 1

ctypedef struct DLDevice:
    int32_t device_type
    int32_t device_id

ctypedef struct DLDataType:
    uint8_t code
    uint8_t bits
    uint16_t lanes

ctypedef struct DLTensor:
    void *data
    DLDevice device
    int32_t ndim
    DLDataType dtype
    int64_t *shape
    int64_t *strides  # in elements
    uint64_t byte_offset

ctypedef struct DLManagedTensor:
    DLTensor dl_tensor
    void *manager_ctx
    void (*deleter)(DLManagedTensor *self) noexcept nogil

ctypedef struct DLPackVersion:
    uint32_t major
    uint32_t minor

ctypedef struct DLManagedTensorVersioned:
    DLPackVersion version
    void *manager_ctx
    void (*deleter)(DLManagedTensorVersioned *self) noexcept nogil
    uint64_t flags
    DLTensor dl_tensor

# The C exchange API of DLPack 1.2+, which torch offers as torch.Tensor.__dlpack_c_exchange_api__.
ctypedef struct DLPackExchangeAPI:
    DLPackVersion version
    void *prev_api
    void *managed_tensor_allocator
    int (*managed_tensor_from_py_object_no_sync)(void *obj, DLManagedTensorVersioned **out) except -1
    int (*managed_tensor_to_py_object_no_sync)(DLManagedTensorVersioned *tensor, void **out) noexcept
    int (*dltensor_from_py_object_no_sync)(void *obj, DLTensor *out) except -1
    void *current_work_stream
