//! Lanes: each has its own Redis, replication slot, checkpoint and epochs, and the streams of its tenants.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::RwLock;

use super::tenant;

/// The lane that every installation has: `redis.url` and `replication.slot`.
pub const MAIN: &str = "main";

/// Whether a text can name a lane: a letter, then up to 23 of a-z, 0-9 and _.
pub fn is_valid_name(name: &str) -> bool {
    tenant::is_word(name, 24)
}

/// The lanes of the tenants that are not in the main one, as Postgres had them last. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Places {
    others: Arc<ArcSwap<HashMap<String, Arc<str>>>>,
    /// Tenants that were looked for and are in the main one.
    main: Arc<RwLock<HashSet<String>>>,
}

impl Places {
    /// The lane of a tenant.
    fn with<T>(&self, tenant: &str, look: impl FnOnce(&str) -> T) -> T {
        let places = self.others.load();
        look(places.get(tenant).map_or(MAIN, |lane| lane))
    }

    /// Whether it is known where a tenant is: it may be new.
    pub fn knows(&self, tenant: &str) -> bool {
        self.others.load().contains_key(tenant) || self.main.read().contains(tenant)
    }

    /// Notes where a tenant is.
    pub fn note(&self, tenant: &str, lane: &str) {
        if lane == MAIN {
            self.main.write().insert(tenant.to_owned());
        } else {
            self.others.rcu(|places| {
                let mut places = HashMap::clone(places);
                places.insert(tenant.to_owned(), lane.into());
                places
            });
        }
    }

    /// Replaces all of them. Returns the tenants that were elsewhere before, with the lane that they have left.
    pub fn set(&self, places: HashMap<String, Arc<str>>) -> Vec<(String, Arc<str>)> {
        let before = self.others.load_full();
        if *before == places {
            return Vec::new();
        }
        let main: Arc<str> = MAIN.into();
        let lane = |places: &HashMap<String, Arc<str>>, tenant: &str| places.get(tenant).unwrap_or(&main).clone();
        let names = before
            .keys()
            .chain(places.keys().filter(|tenant| !before.contains_key(*tenant)));
        let moved = names
            .filter(|tenant| lane(&before, tenant) != lane(&places, tenant))
            .map(|tenant| (tenant.clone(), lane(&before, tenant)))
            .collect();
        self.others.store(Arc::new(places));
        moved
    }
}

/// A value for each lane. Cloning shares the places.
#[derive(Debug, Clone)]
pub struct Lanes<T> {
    main: T,
    /// By name, without the main one.
    others: Vec<(Arc<str>, T)>,
    places: Places,
}

impl<T> Lanes<T> {
    /// The value of the main lane only.
    pub fn of_main(main: T) -> Self {
        Self {
            main,
            others: Vec::new(),
            places: Places::default(),
        }
    }

    /// Adds a lane.
    pub fn add(&mut self, name: &str, value: T) {
        self.others.push((name.into(), value));
    }

    /// Where the tenants are.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// The value for a tenant: of its lane, or of the main one when it is in none that exists here.
    pub fn of(&self, tenant: &str) -> &T {
        if self.others.is_empty() {
            return &self.main;
        }
        self.places.with(tenant, |lane| self.named(lane)).unwrap_or(&self.main)
    }

    /// The value of a lane.
    pub fn named(&self, lane: &str) -> Option<&T> {
        match lane {
            MAIN => Some(&self.main),
            _ => self
                .others
                .iter()
                .find(|(name, _)| **name == *lane)
                .map(|(_, value)| value),
        }
    }

    /// The value of the main lane, which has what belongs to no tenant.
    pub fn main(&self) -> &T {
        &self.main
    }

    /// Whether there are more than the main one.
    pub fn has_others(&self) -> bool {
        !self.others.is_empty()
    }

    /// All lanes by name, the main one first.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        std::iter::once((MAIN, &self.main)).chain(self.others())
    }

    /// The lanes beside the main one, by name.
    pub fn others(&self) -> impl Iterator<Item = (&str, &T)> {
        self.others.iter().map(|(name, value)| (&**name, value))
    }

    /// The same lanes with other values.
    pub fn map<U>(&self, mut value: impl FnMut(&str, &T) -> U) -> Lanes<U> {
        Lanes {
            main: value(MAIN, &self.main),
            others: self
                .others
                .iter()
                .map(|(name, of)| (name.clone(), value(name, of)))
                .collect(),
            places: self.places.clone(),
        }
    }

    /// The same, where a value may fail.
    ///
    /// # Errors
    /// The first one.
    pub fn try_map<U, E>(&self, mut value: impl FnMut(&str, &T) -> Result<U, E>) -> Result<Lanes<U>, E> {
        let others = self
            .others
            .iter()
            .map(|(name, of)| Ok((name.clone(), value(name, of)?)));
        let others = others.collect::<Result<_, E>>()?;
        Ok(Lanes {
            main: value(MAIN, &self.main)?,
            others,
            places: self.places.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenant_without_a_place_is_in_the_main_lane() {
        let mut lanes = Lanes::of_main(0);
        lanes.add("eu", 1);
        let names = lanes.map(|name, _| name.to_owned());
        assert_eq!((*lanes.of("acme"), names.of("acme").as_str()), (0, MAIN));
        let at = |lane: &str| HashMap::from([("acme".to_owned(), Arc::from(lane))]);
        assert_eq!(lanes.places().set(at("eu")), [("acme".to_owned(), MAIN.into())]);
        assert_eq!((*lanes.of("acme"), names.of("acme").as_str()), (1, "eu"));
        assert_eq!(*lanes.of("other"), 0);
        assert!(lanes.places().knows("acme") && !lanes.places().knows("other"));
        lanes.places().note("other", MAIN);
        assert!(lanes.places().knows("other"));
        lanes.places().note("new", "eu");
        assert_eq!(*lanes.of("new"), 1);
        let left = |tenant: &str| (tenant.to_owned(), Arc::from("eu"));
        assert_eq!(lanes.places().set(at("eu")), [left("new")]);
        assert_eq!(lanes.places().set(at("eu")), []);
        assert_eq!(lanes.places().set(HashMap::new()), [left("acme")]);
    }

    #[test]
    fn names_of_lanes() {
        for good in ["a", "eu_2", &"x".repeat(24)] {
            assert!(is_valid_name(good), "{good}");
        }
        for bad in ["", "1a", "_a", "A", "a-b", "a:b", "a}", &"x".repeat(25)] {
            assert!(!is_valid_name(bad), "{bad}");
        }
    }
}
