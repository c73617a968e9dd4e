//! Short text of a fixed capacity, for shared memory.

/// Up to `N` bytes of UTF-8; longer text is cut at a character boundary. All zero bytes is the empty text.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Text<const N: usize> {
    length: u16,
    bytes: [u8; N],
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Text {
            length: 0,
            bytes: [0; N],
        }
    }
}

impl<const N: usize> Text<N> {
    pub(crate) fn set(&mut self, text: &str) {
        let mut end = text.len().min(N);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.bytes[..end].copy_from_slice(&text.as_bytes()[..end]);
        self.length = end as u16;
    }

    pub(crate) fn clear(&mut self) {
        self.length = 0;
    }

    pub(crate) fn as_str(&self) -> &str {
        let end = usize::from(self.length).min(N);
        core::str::from_utf8(&self.bytes[..end]).unwrap_or("")
    }

    /// None when empty: the way absent text is shown in SQL.
    pub(crate) fn to_option(self) -> Option<String> {
        (self.length > 0).then(|| self.as_str().to_owned())
    }
}
