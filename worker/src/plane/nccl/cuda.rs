//! The real NCCL, through `cudarc`, on a stream of libtorch's.

use std::ffi::{CStr, c_int, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys as driver;
use cudarc::nccl::result::get_nccl_version;
use cudarc::nccl::sys::{
    self as nccl, ncclComm_t, ncclConfig_t, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclUniqueId,
};
use polo_recipe::ids::Rank;
use tch::{Device, Kind, Tensor};

use super::{Bulk, Comm, HostMemory, Library, NcclError, Status, UniqueId, check_version};
use crate::streams::{Event, Stream, use_device};

/// `NCCL_CONFIG_INITIALIZER` of nccl.h 2.26.2: the structure that `cudarc`'s feature nccl-02026 declares.
const CONFIG_MAGIC: u32 = 0xcafe_beef;
const CONFIG_VERSION: u32 = 22_602;
const UNDEFINED: c_int = c_int::MIN;

/// NCCL on the GPU of that index. Loads it and the driver, and refuses releases that [`check_version`] does.
pub fn load(gpu: usize) -> Result<Arc<dyn Library>, NcclError> {
    check_version(installed_version()?)?;
    // SAFETY: loading the driver's library runs its initialisers, as any program does that uses a GPU.
    if !unsafe { driver::is_culib_present() } {
        let advice = "it comes with the NVIDIA driver: install that, and see that nvidia-smi lists a GPU";
        return Err(NcclError::Missing { library: "libcuda.so.1", advice });
    }
    let device = Device::Cuda(gpu);
    use_device(device)?;
    Ok(Arc::new(Cuda { device }))
}

/// `cudarc` panics where it finds no library, so it is looked for first.
fn installed_version() -> Result<i32, NcclError> {
    // SAFETY: loading the library runs its initialisers, which only prepare it for use.
    if !unsafe { nccl::is_culib_present() } {
        let advice =
            "use a worker that was built with `make build FLAVOUR=cuda`, or name a folder with it in LD_LIBRARY_PATH";
        return Err(NcclError::Missing { library: "libnccl.so", advice });
    }
    get_nccl_version().map_err(|error| complaint(error.0, ptr::null_mut()))
}

struct Cuda {
    device: Device,
}

impl Library for Cuda {
    fn unique_id(&self) -> Result<UniqueId, NcclError> {
        let mut id = ncclUniqueId { internal: [0; size_of::<UniqueId>()] };
        // SAFETY: NCCL fills the structure.
        check(unsafe { nccl::ncclGetUniqueId(&raw mut id) }, ptr::null_mut())?;
        Ok(id.internal.map(|byte| byte as u8))
    }

    fn begin(&self, id: &UniqueId, world: usize, rank: Rank) -> Result<Box<dyn Comm>, NcclError> {
        use_device(self.device)?;
        let (stream, event) = (Stream::from_pool(self.device)?, Mutex::new(Event::new(self.device)?));
        let id = ncclUniqueId { internal: id.map(|byte| byte as _) };
        let (mut comm, mut config) = (ptr::null_mut(), nonblocking());
        // SAFETY: NCCL writes a handle to `comm` and reads `config` during the call.
        let begun = unsafe {
            nccl::ncclCommInitRankConfig(&raw mut comm, world as c_int, id, rank.0 as c_int, &raw mut config)
        };
        check(begun, comm)?;
        Ok(Box::new(CudaComm { comm, device: self.device, stream, event }))
    }

    fn reaches(&self, address: *const u8) -> bool {
        let mut kind: u32 = 0;
        // SAFETY: the driver answers for any address, with an error for those that it does not know: ordinary memory of
        // the host. A slice does not reach beyond an allocation, so its first byte speaks for all.
        let answer = unsafe {
            driver::cuPointerGetAttribute(
                (&raw mut kind).cast::<c_void>(),
                driver::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
                address as driver::CUdeviceptr,
            )
        };
        answer == driver::CUresult::CUDA_SUCCESS && kind != 0
    }

    fn host_memory(&self, len_bytes: usize) -> Result<HostMemory, NcclError> {
        let pinned = Tensor::f_empty([len_bytes as i64], (Kind::Uint8, Device::Cpu))
            .and_then(|memory| memory.f_pin_memory(self.device))
            .map_err(|error| NcclError::Memory { len_bytes, words: error.to_string() })?;
        Ok(HostMemory { address: pinned.data_ptr().cast(), len_bytes, owner: Box::new(pinned) })
    }
}

fn nonblocking() -> ncclConfig_t {
    ncclConfig_t {
        size: size_of::<ncclConfig_t>(),
        magic: CONFIG_MAGIC,
        version: CONFIG_VERSION,
        blocking: 0,
        cgaClusterSize: UNDEFINED,
        minCTAs: UNDEFINED,
        maxCTAs: UNDEFINED,
        netName: ptr::null(),
        splitShare: UNDEFINED,
        trafficClass: UNDEFINED,
    }
}

struct CudaComm {
    comm: ncclComm_t,
    device: Device,
    stream: Stream,
    event: Mutex<Event>,
}

// SAFETY: NCCL's communicators may be used from any thread; `Communicator` keeps an abort apart from all other calls.
unsafe impl Send for CudaComm {}
// SAFETY: as above: status may be asked for while a group is begun; groups are begun by one thread at a time.
unsafe impl Sync for CudaComm {}

impl CudaComm {
    /// Has the stream wait for whatever the calling thread has given the GPU: it may write what is to be sent.
    fn follow_current(&self) -> Result<*mut nccl::CUstream_st, NcclError> {
        use_device(self.device)?;
        let mut event = self.event.lock().unwrap_or_else(PoisonError::into_inner);
        event.record(Stream::current(self.device)?)?;
        event.hold_up(self.stream)?;
        Ok(self.stream.native_handle()?.cast())
    }

    /// # Safety
    /// As for [`Comm::enqueue`].
    unsafe fn begin_group(&self, group: &[Bulk]) -> Result<Status, NcclError> {
        let stream = self.follow_current()?;
        let kind = ncclDataType_t::ncclUint8;
        // SAFETY: a live communicator and stream; memory as promised by the caller.
        let results = unsafe {
            let mut results = vec![nccl::ncclGroupStart()];
            results.extend(group.iter().map(|transfer| match *transfer {
                Bulk::Send { to, address, len_bytes } => {
                    nccl::ncclSend(address.cast(), len_bytes, kind, to.0 as c_int, self.comm, stream)
                }
                Bulk::Recv { from, address, len_bytes } => {
                    nccl::ncclRecv(address.cast(), len_bytes, kind, from.0 as c_int, self.comm, stream)
                }
                Bulk::AllReduce { address, len } => {
                    let (kind, sum) = (ncclDataType_t::ncclFloat32, ncclRedOp_t::ncclSum);
                    nccl::ncclAllReduce(address.cast(), address.cast(), len, kind, sum, self.comm, stream)
                }
            }));
            results.push(nccl::ncclGroupEnd());
            results
        };
        results.into_iter().try_for_each(|result| check(result, self.comm))?;
        Ok(self.status())
    }
}

impl Comm for CudaComm {
    fn status(&self) -> Status {
        let mut state = ncclResult_t::ncclInProgress;
        // SAFETY: a live communicator; NCCL writes to `state`.
        let asked = unsafe { nccl::ncclCommGetAsyncError(self.comm, &raw mut state) };
        match if asked == ncclResult_t::ncclSuccess { state } else { asked } {
            ncclResult_t::ncclSuccess => Status::Done,
            ncclResult_t::ncclInProgress => Status::InProgress,
            failure => Status::Failed(complaint(failure, self.comm)),
        }
    }

    unsafe fn enqueue(&self, group: &[Bulk]) -> Status {
        // SAFETY: passed on.
        unsafe { self.begin_group(group) }.unwrap_or_else(Status::Failed)
    }

    fn mark(&self) -> Result<(), NcclError> {
        let mut event = self.event.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(event.record(self.stream)?)
    }

    fn is_done(&self) -> Result<bool, NcclError> {
        let event = self.event.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(event.is_done()?)
    }

    fn abort(&self) {
        // SAFETY: a live communicator; `Communicator` calls nothing with it from now on.
        let aborted = unsafe { nccl::ncclCommAbort(self.comm) };
        if aborted != ncclResult_t::ncclSuccess {
            tracing::warn!(?aborted, "NCCL did not abort a communicator cleanly");
        }
    }
}

/// What non-blocking calls return is good unless it says otherwise; [`Comm::status`] tells the rest.
fn check(result: ncclResult_t, comm: ncclComm_t) -> Result<(), NcclError> {
    match result {
        ncclResult_t::ncclSuccess | ncclResult_t::ncclInProgress => Ok(()),
        failure => Err(complaint(failure, comm)),
    }
}

fn complaint(result: ncclResult_t, comm: ncclComm_t) -> NcclError {
    // SAFETY: NCCL's strings are its own and end in zero; it takes a null communicator for any.
    let words = unsafe {
        let last = nccl::ncclGetLastError(comm);
        let last = if last.is_null() { nccl::ncclGetErrorString(result) } else { last };
        if last.is_null() { String::new() } else { CStr::from_ptr(last).to_string_lossy().into_owned() }
    };
    NcclError::Call { result: format!("{result:?}"), words }
}

// The id travels as bytes.
const _: () = assert!(size_of::<ncclUniqueId>() == size_of::<UniqueId>());

#[cfg(test)]
mod tests {
    use super::*;

    /// Where NCCL is (`LD_LIBRARY_PATH=third_party/libtorch-cuda/lib`), its version is read; a GPU is not needed for it.
    #[test]
    fn a_machine_on_which_nccl_cannot_work_is_told_what_to_do() {
        match load(0) {
            Ok(_) => println!("skipped: this machine has a GPU and NCCL"),
            Err(NcclError::Missing { library, advice }) => println!("{library}: {advice}"),
            Err(error) => assert!(error.to_string().contains("nvidia-smi"), "{error}"),
        }
    }

    #[test]
    fn communicators_are_asked_for_that_do_not_block() {
        let config = nonblocking();
        assert_eq!((config.blocking, config.size), (0, 48), "the size in nccl.h 2.26.2");
    }
}
