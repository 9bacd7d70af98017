//! The registry in Redis. Each step is one script, so no two of them overlap; what they do is what
//! [`Ledger`](super::ledger::Ledger) does.
//!
//! | key | what |
//! |---|---|
//! | `PREFIX{failover:NAME}record` | a hash: `epoch`, and `details` in JSON |
//! | `PREFIX{failover:NAME}lease` | the instance that decides; its expiry is the lease's end |
//! | `PREFIX{failover:NAME}sights` | a hash: what each instance sees, and when it told that |
//!
//! They are in one slot of a cluster. Time is Redis' own. A Redis that has forgotten hears the epoch again with the next
//! beat of whoever knows it.

use std::sync::Arc;

use fred::interfaces::LuaInterface as _;
use fred::types::Value;

use super::ledger::SIGHT_MS;
use super::record::{Beat, Details, Heard, Proposal, Record};
use super::registry::{Registry, Reply};
use super::watch::{Look, Sight};
use crate::routing::link::Link;
use crate::types::cluster::Epoch;

/// KEYS: record, lease, sights. ARGV: instance, epoch, details, sight, milliseconds of the lease and of a sight, and
/// when it was seen, if that is known. Gives epoch, details, holder, the time, and the sights.
const BEAT: &str = r"
local known = tonumber(redis.call('HGET', KEYS[1], 'epoch') or '0')
if known < tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'details', ARGV[3])
end
local holder = redis.call('GET', KEYS[2])
if not holder or holder == ARGV[1] then
  redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[5])
  holder = ARGV[1]
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[7] ~= '' then
  redis.call('HSET', KEYS[3], ARGV[1], string.format('%.0f %s', math.min(tonumber(ARGV[7]), now), ARGV[4]))
end
local reply = {
  redis.call('HGET', KEYS[1], 'epoch'), redis.call('HGET', KEYS[1], 'details'), holder, string.format('%.0f', now)
}
local all = redis.call('HGETALL', KEYS[3])
for at = 1, #all, 2 do
  local told, sight = string.match(all[at + 1], '^(%d+) (.*)$')
  if told and tonumber(told) + tonumber(ARGV[6]) > now then
    reply[#reply + 1] = sight
  else
    redis.call('HDEL', KEYS[3], all[at])
  end
end
return reply
";

/// KEYS: record, lease. ARGV: instance, the epoch before, the new one, its details, whether the lease is needed, and until
/// when it may begin. Gives whether it has begun.
const PROPOSE: &str = r"
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[2] then return 0 end
if ARGV[5] == '1' and redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
if time[1] * 1000 + math.floor(time[2] / 1000) > tonumber(ARGV[6]) then return 0 end
redis.call('HSET', KEYS[1], 'epoch', ARGV[3], 'details', ARGV[4])
return 1
";

/// See the module.
pub(super) struct Redis {
    link: Arc<Link>,
    keys: [String; 3],
    lease_ms: u64,
}

impl Redis {
    /// For the upstream `name`.
    pub(super) fn new(link: Arc<Link>, prefix: &str, name: &str, lease_ms: u64) -> Self {
        let key = |what| format!("{prefix}{{failover:{name}}}{what}");
        Self {
            link,
            keys: ["record", "lease", "sights"].map(key),
            lease_ms,
        }
    }

    fn run(&self, script: &'static str, keys: usize, arguments: Vec<String>) -> Reply<Value> {
        let (link, keys) = (self.link.clone(), self.keys[..keys].to_vec());
        Box::pin(async move {
            let client = link.client().ok_or("there is no connection")?;
            let reply = link.reply(client.eval::<Value, _, _, _>(script, keys, arguments));
            reply.await.map_err(|error| error.to_string())
        })
    }
}

impl Registry for Redis {
    fn beat(&self, beat: &Beat) -> Reply<Heard> {
        let details = serde_json::to_string(&beat.record.details).unwrap_or_default();
        let reply = self.run(
            BEAT,
            3,
            vec![
                beat.instance.clone(),
                beat.record.epoch.0.to_string(),
                details,
                written(&beat.look),
                self.lease_ms.to_string(),
                SIGHT_MS.to_string(),
                beat.seen_ms.map(|seen| seen.to_string()).unwrap_or_default(),
            ],
        );
        Box::pin(async move { heard(reply.await?).ok_or_else(|| "a reply of another form".to_owned()) })
    }

    fn propose(&self, proposal: &Proposal) -> Reply<bool> {
        let details = serde_json::to_string(&proposal.record.details).unwrap_or_default();
        let reply = self.run(
            PROPOSE,
            2,
            vec![
                proposal.instance.clone(),
                proposal.from.0.to_string(),
                proposal.record.epoch.0.to_string(),
                details,
                u8::from(proposal.leased).to_string(),
                proposal.until_ms.to_string(),
            ],
        );
        Box::pin(async move { Ok(reply.await?.as_u64() == Some(1)) })
    }
}

fn heard(reply: Value) -> Option<Heard> {
    let Value::Array(parts) = reply else { return None };
    let mut parts = parts.into_iter().map(Value::into_string);
    let mut next = || parts.next().flatten();
    let record = Record {
        epoch: Epoch(next()?.parse().ok().filter(|epoch| *epoch > 0)?),
        details: serde_json::from_str::<Details>(&next()?).ok()?,
    };
    let holder = next()?;
    let at_ms = next()?.parse().ok()?;
    let looks: Option<Vec<Look>> = parts.map(|text| look(&text?)).collect();
    Some(Heard {
        record,
        holder,
        looks: looks?,
        at_ms,
    })
}

/// `0.5000 1.0000 1250 -`: the shares of both clusters, and for how long they have been too low.
fn written(look: &Look) -> String {
    let [primary, standby] = look
        .low_ms
        .map(|low| low.map_or_else(|| "-".to_owned(), |low| low.to_string()));
    let sight = look.sight;
    format!("{:.4} {:.4} {primary} {standby}", sight.primary, sight.standby)
}

fn look(text: &str) -> Option<Look> {
    let mut words = text.split(' ');
    let mut share = || {
        let share = words.next()?.parse::<f64>().ok();
        share.filter(|share| (0.0..=1.0).contains(share))
    };
    let sight = Sight {
        primary: share()?,
        standby: share()?,
    };
    let mut low = || match words.next()? {
        "-" => Some(None),
        ms => ms.parse().ok().map(Some),
    };
    Some(Look {
        sight,
        low_ms: [low()?, low()?],
    })
}
