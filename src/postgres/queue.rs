//! The queue between a receiver and an applier: a shared message queue in dynamic shared memory, made by the
//! receiver. Either side notices when the other is gone.

use pgrx::pg_sys;

/// The receiver's end.
pub(crate) struct Sender {
    handle: *mut pg_sys::shm_mq_handle,
    segment: *mut pg_sys::dsm_segment,
}

/// The applier's end.
pub(crate) struct Receiver {
    handle: *mut pg_sys::shm_mq_handle,
    segment: *mut pg_sys::dsm_segment,
}

/// What became of an attempt to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sent {
    Done,
    /// The queue is full. Try again with the same message when the latch is set.
    Full,
    /// The other side is gone.
    Detached,
}

/// What an attempt to receive found.
pub(crate) enum Taken<'a> {
    Message(&'a [u8]),
    Empty,
    Detached,
}

impl Sender {
    /// Makes a queue of `size` bytes with this process as its sender. The number names it for [`Receiver::attach`].
    pub(crate) fn create(size: usize) -> (Sender, u32) {
        // SAFETY: a fresh segment, mapped until this process ends (no resource owner outside a transaction); the
        // queue is initialised before anyone else can know its number.
        unsafe {
            let segment = pg_sys::dsm_create(size, 0);
            pg_sys::dsm_pin_mapping(segment);
            let queue = pg_sys::shm_mq_create(pg_sys::dsm_segment_address(segment), size);
            pg_sys::shm_mq_set_sender(queue, pg_sys::MyProc);
            let handle = pg_sys::shm_mq_attach(queue, segment, core::ptr::null_mut());
            (Sender { handle, segment }, pg_sys::dsm_segment_handle(segment))
        }
    }

    /// Sends the parts as one message without waiting. After `Full` the same parts must be sent again.
    pub(crate) fn send(&mut self, header: &[u8], payload: &[u8]) -> Sent {
        let mut parts = [
            pg_sys::shm_mq_iovec {
                data: header.as_ptr().cast(),
                len: header.len(),
            },
            pg_sys::shm_mq_iovec {
                data: payload.as_ptr().cast(),
                len: payload.len(),
            },
        ];
        // SAFETY: the parts live through the call; the queue copies them. force_flush: the other side reads on.
        match unsafe { version_sendv(self.handle, &mut parts) } {
            pg_sys::shm_mq_result::SHM_MQ_SUCCESS => Sent::Done,
            pg_sys::shm_mq_result::SHM_MQ_WOULD_BLOCK => Sent::Full,
            _ => Sent::Detached,
        }
    }
}

/// # Safety
/// The handle is attached, the parts are readable.
unsafe fn version_sendv(
    handle: *mut pg_sys::shm_mq_handle,
    parts: &mut [pg_sys::shm_mq_iovec; 2],
) -> pg_sys::shm_mq_result::Type {
    // SAFETY: the caller's promise.
    unsafe { pg_sys::shm_mq_sendv(handle, parts.as_mut_ptr(), parts.len() as i32, true, true) }
}

impl Receiver {
    /// Attaches to the queue; None if its maker is gone already.
    pub(crate) fn attach(number: u32) -> Option<Receiver> {
        // SAFETY: the segment's content is a queue (the number came from the receiver that started this process).
        unsafe {
            let segment = pg_sys::dsm_attach(number);
            if segment.is_null() {
                return None;
            }
            pg_sys::dsm_pin_mapping(segment);
            let queue: *mut pg_sys::shm_mq = pg_sys::dsm_segment_address(segment).cast();
            pg_sys::shm_mq_set_receiver(queue, pg_sys::MyProc);
            let handle = pg_sys::shm_mq_attach(queue, segment, core::ptr::null_mut());
            Some(Receiver { handle, segment })
        }
    }

    /// The next message, if there is one; valid until the next call.
    pub(crate) fn take(&mut self) -> Taken<'_> {
        let (mut length, mut data) = (0, core::ptr::null_mut());
        // SAFETY: the handle is attached; on success `data` stays readable until the next receive.
        unsafe {
            match pg_sys::shm_mq_receive(self.handle, &mut length, &mut data, true) {
                pg_sys::shm_mq_result::SHM_MQ_SUCCESS => {
                    Taken::Message(core::slice::from_raw_parts(data.cast_const().cast(), length))
                }
                pg_sys::shm_mq_result::SHM_MQ_WOULD_BLOCK => Taken::Empty,
                _ => Taken::Detached,
            }
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        // SAFETY: detached once; detaching the segment tells the other side.
        unsafe { pg_sys::dsm_detach(self.segment) };
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // SAFETY: detached once; detaching the segment tells the other side.
        unsafe { pg_sys::dsm_detach(self.segment) };
    }
}
