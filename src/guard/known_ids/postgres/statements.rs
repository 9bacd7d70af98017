//! The statements for one table, and what is wrong with a table that cannot be read.
//!
//! All are made of [`Table`]'s words alone; values go as parameters.

use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use super::super::SourceError;
use super::super::tables::{ID, Table};
use super::pool::{Pool, QueryError};
use super::values::{Timestamp, Uuid};
use crate::types::known::KnownId;

/// What is asked of one table.
#[derive(Debug)]
pub(super) struct Statements {
    /// The database's clock, and about how many rows the table ($1) has.
    pub(super) start: &'static str,
    /// The first page in the order of the primary key; $1 is its size.
    pub(super) first_page: String,
    /// The page after the key $2.
    pub(super) next_page: String,
    /// The rows since $2, after the key $3.
    pub(super) since: String,
    /// Those of the keys in $1 that are there.
    pub(super) which: String,
}

impl Statements {
    pub(super) fn of(table: &Table) -> Self {
        let Table { name, since, .. } = table;
        let text = table.text.map(|column| format!(", {column}")).unwrap_or_default();
        // The values of `only` are ours, and without quotes.
        let only = table.only.map_or_else(
            || "true".to_owned(),
            |(column, value)| format!("{column} = '{value}'"),
        );
        let page = format!("SELECT {ID}{text} FROM {name} WHERE {only}");
        Self {
            start: "SELECT now() AT TIME ZONE 'UTC', coalesce((SELECT reltuples::int8 FROM pg_class \
                    WHERE oid = to_regclass($1)), 0)",
            first_page: format!("{page} ORDER BY {ID} LIMIT $1"),
            next_page: format!("{page} AND {ID} > $2 ORDER BY {ID} LIMIT $1"),
            since: format!(
                "SELECT {ID}{text}, {since} FROM {name} WHERE {only} AND ({since}, {ID}) > ($2, $3) \
                 ORDER BY {since}, {ID} LIMIT $1"
            ),
            which: format!("SELECT {ID} FROM {name} WHERE {only} AND {ID} = ANY($1)"),
        }
    }
}

/// Some rows, in their order.
pub(super) struct Page {
    /// What they are known by; rows without a text have none.
    pub(super) ids: Vec<KnownId>,
    /// The last row's key.
    pub(super) last: Option<Uuid>,
    /// When the last row appeared; only of [`Statements::since`].
    pub(super) last_since: Option<Timestamp>,
    /// Whether there may be more.
    pub(super) full: bool,
    /// How long the database took.
    pub(super) took: Duration,
}

/// Reads a page of at most `size` rows.
pub(super) async fn page(
    pool: &Pool,
    table: &Table,
    sql: &str,
    size: i64,
    after: Option<(Option<Timestamp>, Uuid)>,
) -> Result<Page, SourceError> {
    let rows = match &after {
        None => pool.read(sql, &[(&size, Type::INT8)]).await,
        Some((None, id)) => pool.read(sql, &[(&size, Type::INT8), (id, Type::UUID)]).await,
        Some((Some(since), id)) => {
            let params = [
                (&size as _, Type::INT8),
                (since as _, Type::TIMESTAMP),
                (id as _, Type::UUID),
            ];
            pool.read(sql, &params).await
        }
    };
    let has_since = matches!(after, Some((Some(_), _)));
    match rows.and_then(|(rows, took)| read(table, &rows, took, size, has_since)) {
        Ok(page) => Ok(page),
        Err(error) => Err(wrong(pool, table, error).await),
    }
}

fn read(table: &Table, rows: &[Row], took: Duration, size: i64, has_since: bool) -> Result<Page, QueryError> {
    let form = |error: tokio_postgres::Error| QueryError::Form(error.to_string());
    let mut ids = Vec::with_capacity(rows.len());
    for row in rows {
        if table.text.is_some() {
            let text: Option<&str> = row.try_get(1).map_err(form)?;
            ids.extend(text.map(|text| KnownId::of_text(text.as_bytes())));
        } else {
            ids.push(row.try_get::<_, Uuid>(0).map_err(form)?.0);
        }
    }
    let (mut last, mut last_since) = (None, None);
    if let Some(row) = rows.last() {
        last = Some(row.try_get(0).map_err(form)?);
        if has_since {
            last_since = Some(row.try_get(row.len() - 1).map_err(form)?);
        }
    }
    Ok(Page {
        ids,
        last,
        last_since,
        full: rows.len() as i64 >= size,
        took,
    })
}

/// Says what is wrong with `table` so that somebody can put it right.
pub(super) async fn wrong(pool: &Pool, table: &Table, error: QueryError) -> SourceError {
    let name = table.name;
    let said = match error {
        QueryError::Unreachable(why) => return SourceError::Unreachable(why),
        QueryError::Form(why) => return SourceError::Refused(format!("{name}: {why}")),
        QueryError::Database(said) => said,
    };
    let by_schema = [
        SqlState::UNDEFINED_TABLE,
        SqlState::UNDEFINED_COLUMN,
        SqlState::INSUFFICIENT_PRIVILEGE,
    ];
    if by_schema.contains(said.code())
        && let Some(explained) = explain_schema(pool, table).await
    {
        return SourceError::Schema(explained);
    }
    if *said.code() == SqlState::QUERY_CANCELED {
        let since = table.since;
        let advice = format!("an index may help: CREATE INDEX CONCURRENTLY ON {name} ({since}, {ID})");
        return SourceError::Refused(format!("{name}: {}; {advice}", said.message()));
    }
    SourceError::Refused(format!("{name}: {}", said.message()))
}

/// Which columns are missing or not granted; none if the database does not tell.
async fn explain_schema(pool: &Pool, table: &Table) -> Option<String> {
    const ASK: &str = "SELECT current_user::text, to_regclass($1) IS NOT NULL, a.attname::text, \
                       has_column_privilege(a.attrelid, a.attnum, 'SELECT') \
                       FROM (SELECT 1) AS one LEFT JOIN pg_attribute a \
                       ON a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped";
    let name = table.name;
    let (rows, _) = pool.read(ASK, &[(&name, Type::TEXT)]).await.ok()?;
    let role: String = rows.first()?.try_get(0).ok()?;
    if !rows.first()?.try_get::<_, bool>(1).ok()? {
        return Some(format!("{name}: no such table that the role {role} may see"));
    }
    let granted = |column: &str| {
        let found = |row: &&Row| {
            row.try_get::<_, Option<&str>>(2)
                .is_ok_and(|name| name == Some(column))
        };
        rows.iter().find(found).map(|row| row.try_get(3).unwrap_or(false))
    };
    let columns = table.columns();
    if let Some(missing) = columns.iter().find(|column| granted(column).is_none()) {
        return Some(format!("{name}.{missing}: no such column"));
    }
    let refused = columns.iter().find(|column| granted(column) == Some(false))?;
    let all = columns.join(", ");
    Some(format!(
        "{name}.{refused}: not granted; GRANT SELECT ({all}) ON {name} TO \"{role}\""
    ))
}

#[cfg(test)]
mod tests {
    use super::super::super::tables::TABLES;
    use super::*;

    #[test]
    fn statements_name_the_columns_of_their_table_and_no_others() {
        for table in TABLES {
            let sql = Statements::of(table);
            let all = format!("{} {} {} {}", sql.first_page, sql.next_page, sql.since, sql.which);
            for column in table.columns() {
                assert!(all.contains(column), "{}: {column}", table.name);
            }
            let (since_only, read_whole) = (format!(" {} ", table.since), &sql.first_page);
            assert!(!read_whole.contains(&since_only), "{read_whole}");
        }
    }
}
