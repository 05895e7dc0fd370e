//! Keys that hold another type than Posduif writes: which, and what fixes them.

use redis::Pipeline;

use super::error::is_wrong_type;
use super::store::{Error, Store};

impl Store {
    /// [`Store::query`] about one key, of a tenant if any. When the key holds another type, the error names it and its fix.
    pub(crate) async fn query_key<T: redis::FromRedisValue>(
        &self,
        pipe: &Pipeline,
        tenant: Option<&str>,
        key: &str,
    ) -> Result<T, Error> {
        let error = match self.query(pipe).await {
            Err(error) if is_wrong_type(&error) => error,
            result => return Ok(result?),
        };
        let mut pipe = redis::pipe();
        pipe.cmd("TYPE").arg(key);
        match self.query::<(String,)>(&pipe).await {
            Ok((kind,)) => Err(self.wrong_type(tenant, key, &kind)),
            Err(_) => Err(error.into()),
        }
    }

    /// The error for a key that holds another type.
    pub(crate) fn wrong_type(&self, tenant: Option<&str>, key: &str, kind: &str) -> Error {
        let keys = self.keys();
        let fix = match tenant {
            Some(tenant) if key == keys.meta(tenant) => format!("`posduif tenant resync {tenant} --yes` recreates it"),
            Some(tenant) if key != keys.quarantine(tenant) => {
                format!("`posduif stream rebuild --tenant {tenant} --yes` recreates it")
            }
            _ => format!("`redis-cli -u \"$REDIS_URL\" DEL '{key}'` removes it"),
        };
        Error::WrongType {
            key: key.to_owned(),
            found: kind.to_owned(),
            fix,
        }
    }
}
