//! Where this process's vectors live: in ordinary memory, or in memory that both the host and a GPU reach.
//!
//! The latter is CUDA's managed memory. A driver that is asked for more of it than the card has free moves pages to and
//! fro and may hang the card for everybody, so that is refused here, and [`free_bytes`] is there to be compared with beforehand.

use std::{
    ffi::c_void,
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use cudarc::driver::sys::{self as driver, CUresult};
use tch::Device;
use thiserror::Error;

use crate::streams::{StreamError, use_device};

static HOME: OnceLock<Gpu> = OnceLock::new();

/// Why vectors cannot live on a device.
#[derive(Debug, Error)]
pub enum HomeError {
    /// There is no driver.
    #[error(
        "libcuda.so.1 cannot be loaded; it comes with the NVIDIA driver: install that, or set run.device = \"cpu\""
    )]
    NoDriver,
    /// libtorch does not see the device.
    #[error(transparent)]
    Device(#[from] StreamError),
    /// The driver refused.
    #[error("the NVIDIA driver cannot {what}: {result}; see nvidia-smi, and dmesg for what befell the GPU")]
    Driver {
        /// What was tried.
        what: &'static str,
        /// Its result's name.
        result: String,
    },
    /// Host and GPU may not use memory at the same time.
    #[error(
        "{0:?} does not let the host read memory while it computes; a data-centre card under Linux does: take one, or set run.device = \"cpu\""
    )]
    NotConcurrent(Device),
    /// There is one home for a process.
    #[error("vectors of this process live on {0:?} already")]
    Settled(Device),
}

/// The GPU on which vectors live.
#[derive(Debug)]
struct Gpu {
    device: Device,
    /// Of its memory when this process began.
    free_bytes: usize,
    taken_bytes: AtomicUsize,
}

/// Decides, once and before there is any vector, that vectors live where `device` reaches them. For the CPU nothing needs
/// to be decided.
pub fn settle(device: Device) -> Result<(), HomeError> {
    let Device::Cuda(index) = device else { return Ok(()) };
    // SAFETY: loading the driver's library runs its initialisers, as any program does that uses a GPU.
    if !unsafe { driver::is_culib_present() } {
        return Err(HomeError::NoDriver);
    }
    use_device(device)?;
    if !is_concurrent(index)? {
        return Err(HomeError::NotConcurrent(device));
    }
    let (mut free_bytes, mut total_bytes) = (0, 0);
    // SAFETY: the driver writes two numbers.
    check("say how much memory is free", unsafe {
        driver::cuMemGetInfo_v2(&raw mut free_bytes, &raw mut total_bytes)
    })?;
    let gpu = Gpu { device, free_bytes, taken_bytes: AtomicUsize::new(0) };
    HOME.set(gpu).map_err(|_| HomeError::Settled(self::device()))
}

fn is_concurrent(index: usize) -> Result<bool, HomeError> {
    let attribute = driver::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS;
    let mut answer = 0;
    // SAFETY: the driver writes a number; a device's handle is its index.
    check("describe the device", unsafe { driver::cuDeviceGetAttribute(&raw mut answer, attribute, index as i32) })?;
    Ok(answer != 0)
}

fn check(what: &'static str, result: CUresult) -> Result<(), HomeError> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    Err(HomeError::Driver { what, result: format!("{result:?}") })
}

/// The device that reaches this process's vectors.
pub fn device() -> Device {
    HOME.get().map_or(Device::Cpu, |gpu| gpu.device)
}

/// What was free of the GPU's memory when this process began; none where vectors are in ordinary memory.
pub fn free_bytes() -> Option<u64> {
    HOME.get().map(|gpu| gpu.free_bytes as u64)
}

/// The device that is to compute with what lies at `address`.
pub(super) fn device_of(address: *const f32) -> Device {
    HOME.get().filter(|_| is_managed(address)).map_or(Device::Cpu, |gpu| gpu.device)
}

fn is_managed(address: *const f32) -> bool {
    let mut is_managed: u32 = 0;
    // SAFETY: the driver answers for any address, with an error for those that it does not know: ordinary memory.
    let answer = unsafe {
        driver::cuPointerGetAttribute(
            (&raw mut is_managed).cast::<c_void>(),
            driver::CUpointer_attribute::CU_POINTER_ATTRIBUTE_IS_MANAGED,
            address as driver::CUdeviceptr,
        )
    };
    answer == CUresult::CUDA_SUCCESS && is_managed != 0
}

/// Memory for fp32 that host and GPU reach.
pub(super) struct Managed {
    address: *mut f32,
    len: usize,
}

// SAFETY: plain memory, with one owner.
unsafe impl Send for Managed {}
// SAFETY: as above; it is only changed through `&mut`.
unsafe impl Sync for Managed {}

impl Managed {
    /// `len` zeros; none where vectors live in ordinary memory, or where there are none.
    ///
    /// # Panics
    /// If the GPU has no memory left: whoever trains compares what it will need with [`free_bytes`] first.
    pub(super) fn zeros(len: usize) -> Option<Self> {
        let gpu = HOME.get().filter(|_| len > 0)?;
        let len_bytes = len * size_of::<f32>();
        let taken_bytes = gpu.taken_bytes.fetch_add(len_bytes, Ordering::Relaxed) + len_bytes;
        let (device, free_bytes) = (gpu.device, gpu.free_bytes);
        assert!(
            taken_bytes <= free_bytes,
            "{device:?} had {free_bytes} bytes free, and {taken_bytes} are wanted now; `polo plan` says what would fit"
        );
        Some(Self { address: allocate(device, len_bytes).unwrap_or_else(|error| panic!("{error}")), len })
    }

    pub(super) fn as_slice(&self) -> &[f32] {
        // SAFETY: `len` fp32, written when they were allocated.
        unsafe { std::slice::from_raw_parts(self.address, self.len) }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: as above, and borrowed as this is.
        unsafe { std::slice::from_raw_parts_mut(self.address, self.len) }
    }
}

fn allocate(device: Device, len_bytes: usize) -> Result<*mut f32, HomeError> {
    use_device(device)?;
    let mut address = 0;
    let flags = driver::CUmemAttach_flags::CU_MEM_ATTACH_GLOBAL as u32;
    // SAFETY: the driver writes an address, and then zeros to the memory there, on the GPU, which is where it stays.
    unsafe {
        check("allocate memory", driver::cuMemAllocManaged(&raw mut address, len_bytes, flags))?;
        check("clear memory", driver::cuMemsetD8_v2(address, 0, len_bytes))?;
        check("clear memory", driver::cuCtxSynchronize())?;
    }
    Ok(address as *mut f32)
}

impl Drop for Managed {
    fn drop(&mut self) {
        if let Some(gpu) = HOME.get() {
            gpu.taken_bytes.fetch_sub(self.len * size_of::<f32>(), Ordering::Relaxed);
        }
        // SAFETY: allocated above, and nobody names it any more. The driver waits for what the GPU does with it.
        let freed = unsafe { driver::cuMemFree_v2(self.address as driver::CUdeviceptr) };
        if freed != CUresult::CUDA_SUCCESS {
            tracing::warn!(?freed, "the NVIDIA driver did not take memory back");
        }
    }
}

impl fmt::Debug for Managed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.as_slice()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_that_is_not_there_is_refused_and_vectors_stay_in_ordinary_memory() {
        let error = settle(Device::Cuda(999)).expect_err("no such device").to_string();
        assert!(error.contains("nvidia-smi") || error.contains("run.device"), "{error}");
        settle(Device::Cpu).expect("nothing to decide");
        assert_eq!((device(), free_bytes()), (Device::Cpu, None));
        assert!(Managed::zeros(3).is_none());
        assert_eq!(device_of([1.0_f32].as_ptr()), Device::Cpu);
    }
}
