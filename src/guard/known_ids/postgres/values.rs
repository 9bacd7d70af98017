//! Values as PostgreSQL sends them: UUIDs and timestamps as their bytes, without a detour through text.

use bytes::{BufMut as _, BytesMut};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};

use crate::types::known::KnownId;

type BoxError = Box<dyn std::error::Error + Sync + Send>;

/// A column of type `uuid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Uuid(pub(super) KnownId);

impl Uuid {
    /// The first of all.
    pub(super) const NIL: Self = Self(KnownId([0; 16]));
}

impl FromSql<'_> for Uuid {
    fn from_sql(_: &Type, raw: &[u8]) -> Result<Self, BoxError> {
        Ok(Self(KnownId(raw.try_into()?)))
    }

    accepts!(UUID);
}

impl ToSql for Uuid {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, BoxError> {
        out.put_slice(&self.0.0);
        Ok(IsNull::No)
    }

    accepts!(UUID);
    to_sql_checked!();
}

/// A column of type `timestamp` with or without time zone, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Timestamp(i64);

impl Timestamp {
    /// The same clock, so much earlier.
    pub(super) fn earlier(self, by: std::time::Duration) -> Self {
        let micros = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_sub(micros))
    }
}

impl FromSql<'_> for Timestamp {
    fn from_sql(_: &Type, raw: &[u8]) -> Result<Self, BoxError> {
        Ok(Self(i64::from_be_bytes(raw.try_into()?)))
    }

    accepts!(TIMESTAMP, TIMESTAMPTZ);
}

impl ToSql for Timestamp {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, BoxError> {
        out.put_i64(self.0);
        Ok(IsNull::No)
    }

    accepts!(TIMESTAMP);
    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn values_come_back_as_they_went(id: [u8; 16], micros: i64) {
            let mut raw = BytesMut::new();
            Uuid(KnownId(id)).to_sql(&Type::UUID, &mut raw).expect("16 bytes");
            prop_assert_eq!(Uuid::from_sql(&Type::UUID, &raw).expect("a UUID"), Uuid(KnownId(id)));
            raw.clear();
            Timestamp(micros).to_sql(&Type::TIMESTAMP, &mut raw).expect("8 bytes");
            let back = Timestamp::from_sql(&Type::TIMESTAMP, &raw).expect("a time");
            prop_assert_eq!(back, Timestamp(micros));
        }

        #[test]
        fn bytes_of_another_length_are_an_error(raw in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(Uuid::from_sql(&Type::UUID, &raw).is_ok(), raw.len() == 16);
            prop_assert_eq!(Timestamp::from_sql(&Type::TIMESTAMP, &raw).is_ok(), raw.len() == 8);
        }
    }
}
