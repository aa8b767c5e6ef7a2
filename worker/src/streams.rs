//! libtorch's streams and events (`csrc/streams.cpp`): in what order a GPU does what it was given.
//!
//! The CPU does all at once, so its stream is always idle and its events have always happened.

use std::ffi::{CStr, c_char, c_void};
use std::ptr;

use tch::Device;
use thiserror::Error;

unsafe extern "C" {
    fn polo_use_device(index: i32) -> *mut c_char;
    fn polo_stream_current(index: i32, id: *mut i64) -> *mut c_char;
    fn polo_stream_from_pool(index: i32, id: *mut i64) -> *mut c_char;
    fn polo_stream_exchange(index: i32, id: i64, previous: *mut i64) -> *mut c_char;
    fn polo_stream_finish(index: i32, id: i64) -> *mut c_char;
    fn polo_stream_native_handle(index: i32, id: i64, handle: *mut *mut c_void) -> *mut c_char;
    fn polo_event_new(event: *mut *mut c_void) -> *mut c_char;
    fn polo_event_record(event: *mut c_void, index: i32, id: i64) -> *mut c_char;
    fn polo_event_block(event: *const c_void, index: i32, id: i64) -> *mut c_char;
    fn polo_event_query(event: *const c_void, is_done: *mut bool) -> *mut c_char;
    fn polo_event_delete(event: *mut c_void);
    fn polo_release(message: *mut c_char);
}

/// Why a device would not do something.
#[derive(Debug, Error)]
pub enum StreamError {
    /// libtorch refused.
    #[error(
        "libtorch cannot {what} on {device:?}: {message}; this needs a GPU that nvidia-smi lists, and a worker that was \
         built with `make build FLAVOUR=cuda`"
    )]
    Torch {
        /// What was tried.
        what: &'static str,
        /// Where.
        device: Device,
        /// Its words.
        message: String,
    },
    /// There is no such thing on this kind of device.
    #[error("{0:?} has no streams of CUDA")]
    NoHandle(Device),
}

type Result<T = ()> = std::result::Result<T, StreamError>;

/// The index of a GPU; none for what does all at once.
fn gpu(device: Device) -> Option<i32> {
    match device {
        Device::Cuda(index) => Some(index as i32),
        _ => None,
    }
}

fn check(what: &'static str, device: Device, message: *mut c_char) -> Result {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a string of the shim, which is ours to release.
    let words = unsafe {
        let words = CStr::from_ptr(message).to_string_lossy().into_owned();
        polo_release(message);
        words
    };
    let first_line = words.lines().next().unwrap_or_default().into();
    Err(StreamError::Torch { what, device, message: first_line })
}

/// Makes `device` the one that CUDA's and NCCL's calls of this thread mean.
pub fn use_device(device: Device) -> Result {
    let Some(index) = gpu(device) else { return Ok(()) };
    // SAFETY: a number; the shim catches exceptions.
    check("choose the device", device, unsafe { polo_use_device(index) })
}

/// A queue of work on a device. Streams are libtorch's, and live as long as the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    device: Device,
    id: i64,
}

impl Stream {
    /// The one on which this thread's operations go.
    pub fn current(device: Device) -> Result<Self> {
        // SAFETY: `id` outlives the call; the shim catches exceptions.
        Self::found("find the current stream", device, |index, id| unsafe { polo_stream_current(index, id) })
    }

    /// One beside the current one, from libtorch's pool, which gives them out in turns.
    pub fn from_pool(device: Device) -> Result<Self> {
        // SAFETY: as above.
        Self::found("make a stream", device, |index, id| unsafe { polo_stream_from_pool(index, id) })
    }

    fn found(what: &'static str, device: Device, find: impl FnOnce(i32, *mut i64) -> *mut c_char) -> Result<Self> {
        let mut id = 0;
        if let Some(index) = gpu(device) {
            check(what, device, find(index, &raw mut id))?;
        }
        Ok(Self { device, id })
    }

    /// Makes it the current one of this thread, and returns the one that was.
    pub fn make_current(self) -> Result<Self> {
        let change = |index, previous| {
            // SAFETY: a stream that libtorch gave; `previous` outlives the call; the shim catches exceptions.
            unsafe { polo_stream_exchange(index, self.id, previous) }
        };
        Self::found("change the stream", self.device, change)
    }

    /// Returns when the device has done all that was put on it.
    pub fn finish(self) -> Result {
        let Some(index) = gpu(self.device) else { return Ok(()) };
        // SAFETY: a stream that libtorch gave; the shim catches exceptions.
        check("finish its work", self.device, unsafe { polo_stream_finish(index, self.id) })
    }

    /// CUDA's own handle, a `cudaStream_t`, which stays libtorch's.
    pub fn native_handle(self) -> Result<*mut c_void> {
        let index = gpu(self.device).ok_or(StreamError::NoHandle(self.device))?;
        let mut handle = ptr::null_mut();
        // SAFETY: a stream that libtorch gave; `handle` outlives the call; the shim catches exceptions.
        let message = unsafe { polo_stream_native_handle(index, self.id, &raw mut handle) };
        check("name its stream", self.device, message).map(|()| handle)
    }
}

/// A point in a stream.
#[derive(Debug)]
pub struct Event {
    device: Device,
    /// Null where none is needed.
    event: *mut c_void,
}

// SAFETY: CUDA's events may be used from any thread, and `&mut` keeps the calls that change this one apart.
unsafe impl Send for Event {}

impl Event {
    /// One that has not been recorded, and so counts as done.
    pub fn new(device: Device) -> Result<Self> {
        let mut event = ptr::null_mut();
        if gpu(device).is_some() {
            // SAFETY: `event` outlives the call; the shim catches exceptions.
            check("make an event", device, unsafe { polo_event_new(&raw mut event) })?;
        }
        Ok(Self { device, event })
    }

    /// Moves it to the present end of `stream`.
    pub fn record(&mut self, stream: Stream) -> Result {
        let Some(index) = gpu(self.device) else { return Ok(()) };
        // SAFETY: a live event and a stream that libtorch gave; the shim catches exceptions.
        check("record an event", self.device, unsafe { polo_event_record(self.event, index, stream.id) })
    }

    /// Makes whatever is put on `stream` from now on wait until this event is done.
    pub fn hold_up(&self, stream: Stream) -> Result {
        let Some(index) = gpu(self.device) else { return Ok(()) };
        // SAFETY: as above.
        check("wait for an event", self.device, unsafe { polo_event_block(self.event, index, stream.id) })
    }

    /// Whether its stream has come to it. Returns at once.
    pub fn is_done(&self) -> Result<bool> {
        let mut is_done = true;
        if gpu(self.device).is_some() {
            // SAFETY: a live event; `is_done` outlives the call; the shim catches exceptions.
            let message = unsafe { polo_event_query(self.event, &raw mut is_done) };
            check("query an event", self.device, message)?;
        }
        Ok(is_done)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if !self.event.is_null() {
            // SAFETY: a live event that nobody can name any more.
            unsafe { polo_event_delete(self.event) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_has_done_all_that_it_was_given() {
        let stream = Stream::current(Device::Cpu).expect("a stream");
        assert_eq!(Stream::from_pool(Device::Cpu).expect("the same stream"), stream);
        assert_eq!(stream.make_current().expect("no change"), stream);
        stream.finish().expect("nothing to finish");
        let mut event = Event::new(Device::Cpu).expect("an event");
        event.record(stream).expect("nothing to record");
        event.hold_up(stream).expect("nothing to wait for");
        assert!(event.is_done().expect("no query"));
        use_device(Device::Cpu).expect("nothing to choose");
        assert!(matches!(stream.native_handle(), Err(StreamError::NoHandle(Device::Cpu))));
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error_that_says_what_to_do() {
        let device = Device::Cuda(999);
        for error in [Stream::current(device).err(), Stream::from_pool(device).err(), use_device(device).err()] {
            let text = error.expect("no such device").to_string();
            assert!(text.contains("on Cuda(999)") && text.contains("FLAVOUR=cuda"), "{text}");
            assert!(!text.contains('\n'), "{text}");
        }
    }
}
