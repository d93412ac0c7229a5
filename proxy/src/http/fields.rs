//! Header fields in the order they came, one after the other in memory.
//!
//! A message has few fields and a proxy asks for many it does not have: walking a short list is several times cheaper than
//! hashing every name, and its order is what the sender meant. Drivers cap the number of fields, which bounds the walk.

use http::{HeaderMap, HeaderName, HeaderValue};

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Fields {
    list: Vec<(HeaderName, HeaderValue)>,
}

/// What a field can be asked for by. Names in a list are lower case.
pub trait Named {
    fn is(&self, name: &HeaderName) -> bool;
}

impl Named for HeaderName {
    #[inline]
    fn is(&self, name: &HeaderName) -> bool {
        self == name
    }
}

impl Named for &HeaderName {
    #[inline]
    fn is(&self, name: &HeaderName) -> bool {
        *self == name
    }
}

impl Named for &str {
    #[inline]
    fn is(&self, name: &HeaderName) -> bool {
        name.as_str().eq_ignore_ascii_case(self)
    }
}

impl Fields {
    pub fn with_capacity(fields: usize) -> Self {
        Self { list: Vec::with_capacity(fields) }
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The first value of that name.
    #[inline]
    pub fn get(&self, name: impl Named) -> Option<&HeaderValue> {
        self.list.iter().find(|(n, _)| name.is(n)).map(|(_, value)| value)
    }

    pub fn get_all(&self, name: impl Named) -> impl Iterator<Item = &HeaderValue> {
        self.list.iter().filter(move |(n, _)| name.is(n)).map(|(_, value)| value)
    }

    #[inline]
    pub fn contains_key(&self, name: impl Named) -> bool {
        self.list.iter().any(|(n, _)| name.is(n))
    }

    /// In the place of all that have this name, at the place of the first.
    pub fn insert(&mut self, name: HeaderName, value: HeaderValue) {
        let Some(at) = self.list.iter().position(|(n, _)| *n == name) else { return self.append(name, value) };
        if let Some(field) = self.list.get_mut(at) {
            field.1 = value;
        }
        let mut index = 0;
        self.list.retain(|(n, _)| {
            index += 1;
            index <= at + 1 || *n != name
        });
    }

    #[inline]
    pub fn append(&mut self, name: HeaderName, value: HeaderValue) {
        self.list.push((name, value));
    }

    /// All of that name; the first of them comes back.
    pub fn remove(&mut self, name: impl Named) -> Option<HeaderValue> {
        let at = self.list.iter().position(|(n, _)| name.is(n))?;
        let (_, first) = self.list.remove(at);
        self.list.retain(|(n, _)| !name.is(n));
        Some(first)
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&HeaderName, &HeaderValue) -> bool) {
        self.list.retain(|(name, value)| keep(name, value));
    }

    pub fn iter(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.list.iter().map(|(name, value)| (name, value))
    }

    pub fn keys(&self) -> impl Iterator<Item = &HeaderName> {
        self.list.iter().map(|(name, _)| name)
    }
}

impl IntoIterator for Fields {
    type Item = (HeaderName, HeaderValue);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.into_iter()
    }
}

impl FromIterator<(HeaderName, HeaderValue)> for Fields {
    fn from_iter<I: IntoIterator<Item = (HeaderName, HeaderValue)>>(fields: I) -> Self {
        Self { list: fields.into_iter().collect() }
    }
}

impl From<HeaderMap> for Fields {
    fn from(map: HeaderMap) -> Self {
        // One that repeats comes without its name.
        let mut last = None;
        let named = map.into_iter().filter_map(|(name, value)| {
            last = name.or(last.take());
            Some((last.clone()?, value))
        });
        named.collect()
    }
}

impl From<Fields> for HeaderMap {
    fn from(fields: Fields) -> Self {
        let mut map = HeaderMap::with_capacity(fields.len());
        for (name, value) in fields {
            map.append(name, value);
        }
        map
    }
}

/// A number as a value. Small ones, which counts and milliseconds mostly are, cost nothing.
pub fn number(n: u64) -> HeaderValue {
    const SMALL: [&str; 16] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15"];
    let small = usize::try_from(n).ok().and_then(|n| SMALL.get(n));
    small.map_or_else(|| HeaderValue::from(n), |text| HeaderValue::from_static(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(list: &[(&'static str, &'static str)]) -> Fields {
        list.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn a_repeated_field_is_one_of_several_until_it_is_set() {
        let mut some = fields(&[("a", "1"), ("b", "2"), ("a", "3"), ("c", "4"), ("a", "5")]);
        assert_eq!(some.get_all("A").collect::<Vec<_>>(), ["1", "3", "5"]);
        some.insert(HeaderName::from_static("a"), HeaderValue::from_static("6"));
        assert_eq!(some, fields(&[("a", "6"), ("b", "2"), ("c", "4")]));
        assert_eq!(some.remove("b").unwrap(), "2");
        assert_eq!(some.remove("b"), None);
        some.append(HeaderName::from_static("c"), HeaderValue::from_static("7"));
        assert_eq!(some.remove(HeaderName::from_static("c")).unwrap(), "4");
        assert_eq!(some, fields(&[("a", "6")]));
        some.insert(HeaderName::from_static("d"), HeaderValue::from_static("8"));
        assert_eq!(some.len(), 2);
    }

    #[test]
    fn numbers() {
        for n in [0, 9, 15, 16, 100, u64::MAX] {
            assert_eq!(number(n), n.to_string().as_str());
        }
    }

    #[test]
    fn maps_come_and_go_with_every_value() {
        let some = fields(&[("a", "1"), ("b", "2"), ("a", "3")]);
        let map = HeaderMap::from(some.clone());
        assert_eq!(map.get_all("a").iter().collect::<Vec<_>>(), ["1", "3"]);
        let back = Fields::from(map);
        assert_eq!(back.len(), 3);
        assert_eq!(back.get_all("a").collect::<Vec<_>>(), ["1", "3"]);
    }
}
