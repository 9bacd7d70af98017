//! Fields and content of a stored answer, packed: a header map takes several times the bytes of its fields.
//!
//! Nothing of the buffers that they were read into is kept. Fields lie one behind the other, each as the length of
//! its name (16 bits), the length of its value (32 bits), name and value.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

/// See the module.
#[derive(Debug)]
pub(super) struct Packed {
    /// The fields, then the content.
    bytes: Bytes,
    /// Where the content begins.
    content: u32,
}

impl Packed {
    /// Copies `headers` and `body`, which are bounded by what is kept at all (far below 4 GiB).
    pub(super) fn new(headers: &HeaderMap, body: &[u8]) -> Self {
        let content: usize = headers.iter().map(|(n, v)| 6 + n.as_str().len() + v.len()).sum();
        let mut bytes = BytesMut::with_capacity(content + body.len());
        for (name, value) in headers {
            // A name is shorter than 64 KiB (`HeaderName`).
            bytes.put_u16(name.as_str().len() as u16);
            bytes.put_u32(value.len() as u32);
            bytes.put_slice(name.as_str().as_bytes());
            bytes.put_slice(value.as_bytes());
        }
        bytes.put_slice(body);
        Self {
            bytes: bytes.freeze(),
            content: content as u32,
        }
    }

    /// Where the content begins, and everything.
    pub(super) fn parts(&self) -> (u32, &[u8]) {
        (self.content, &self.bytes)
    }

    /// What [`parts`](Self::parts) gave; `None` when it cannot be that.
    pub(super) fn from_parts(content: u32, bytes: Bytes) -> Option<Self> {
        let mut fields = bytes.get(..content as usize)?;
        while !fields.is_empty() {
            let (name, value) = (fields.try_get_u16().ok()?, fields.try_get_u32().ok()?);
            let (name, rest) = fields.split_at_checked(name.into())?;
            let (value, rest) = rest.split_at_checked(value as usize)?;
            HeaderName::from_bytes(name).ok()?;
            HeaderValue::from_bytes(value).ok()?;
            fields = rest;
        }
        Some(Self { bytes, content })
    }

    /// The fields, in their order; the values share this memory.
    pub(super) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(16);
        let mut rest = self.bytes.slice(..self.content as usize);
        while rest.len() > 6 {
            let (name, value) = (rest.get_u16(), rest.get_u32());
            let (name, value) = (rest.split_to(name.into()), rest.split_to(value as usize));
            // What was a name and a value is one.
            if let (Ok(name), Ok(value)) = (
                HeaderName::from_bytes(&name),
                HeaderValue::from_maybe_shared(value),
            ) {
                headers.append(name, value);
            }
        }
        headers
    }

    /// The content; shares this memory.
    pub(super) fn body(&self) -> Bytes {
        self.bytes.slice(self.content as usize..)
    }

    /// Bytes of the content.
    pub(super) fn body_len(&self) -> usize {
        self.bytes.len() - self.content as usize
    }

    /// Bytes of both.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_packed_keeps_nothing_of_the_buffer_that_it_was_read_into() {
        let mut buffer = BytesMut::with_capacity(8192);
        let mut read = |text: &str| {
            buffer.extend_from_slice(text.as_bytes());
            buffer.split().freeze()
        };
        let value = |bytes| HeaderValue::from_maybe_shared(bytes).expect("a value");
        let mut headers = HeaderMap::new();
        headers.append("etag", value(read("\"1\"")));
        headers.append("vary", value(read("origin")));
        headers.append("vary", value(read("accept")));
        headers.append("x-empty", value(read("")));
        let packed = Packed::new(&headers, &read("content"));
        assert_eq!(
            (packed.headers(), &packed.body()[..]),
            (headers.clone(), &b"content"[..])
        );
        assert!(!buffer.try_reclaim(8192), "the fields as they came keep it");
        drop(headers);
        assert!(buffer.try_reclaim(8192));
    }

    proptest! {
        #[test]
        fn fields_and_content_come_out_as_they_went_in(
            fields in proptest::collection::vec(("[a-z-]{1,20}", proptest::collection::vec(32u8..=126, 0..40)), 0..40),
            length in 0usize..100,
        ) {
            let mut headers = HeaderMap::new();
            for (name, value) in &fields {
                headers.append(
                    HeaderName::from_bytes(name.as_bytes()).expect("a name"),
                    HeaderValue::from_bytes(value).expect("a value"),
                );
            }
            let body = Bytes::from(vec![b'x'; length]);
            let packed = Packed::new(&headers, &body);
            prop_assert_eq!(packed.headers(), headers);
            prop_assert_eq!(packed.body(), body);
        }
    }
}
