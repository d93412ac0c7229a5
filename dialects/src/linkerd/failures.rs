//! Which answers a ServiceProfile calls failures: its `responseClasses`, the first that fits, and 5xx where none does.

use crate::reader::Field;

/// Statuses from 100 to 599; true: a failure.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failures([bool; 500]);

const FIRST: usize = 100;

/// Which statuses a condition takes.
type Set = [bool; 500];

impl Failures {
    pub fn read(classes: &[Field<'_>]) -> Self {
        let mut failures: Set = std::array::from_fn(|i| i + FIRST >= 500);
        // The first class that fits decides, so the last is written first.
        for class in classes.iter().rev() {
            let failure = class.get("isFailure").map_or(Some(false), |f| f.bool());
            let set = match class.get("condition") {
                Some(condition) => condition_of(&condition, 0),
                None => class.fail("has no condition", "condition: {status: {min: 500, max: 599}}"),
            };
            let (Some(failure), Some(set)) = (failure, set) else {
                class.ignored("cannot be read, so it is left out");
                continue;
            };
            failures.iter_mut().zip(set).filter(|(_, fits)| *fits).for_each(|(is, _)| *is = failure);
        }
        Self(failures)
    }

    /// As retry conditions. A request that got no answer at all is one the app's side would call a 5xx.
    pub fn conditions(&self) -> String {
        let all_5xx = self.0[400..].iter().all(|f| *f);
        let mut words = match all_5xx {
            true => vec!["5xx".to_string()],
            false => vec!["reset".into(), "connect-failure".into(), "refused-stream".into()],
        };
        let end = if all_5xx { 400 } else { 500 };
        let mut at = 0;
        while at < end {
            let len = self.0[at..end].iter().take_while(|f| **f).count();
            match len {
                0 => {}
                1 => words.push(format!("{}", at + FIRST)),
                n => words.push(format!("{}-{}", at + FIRST, at + FIRST + n - 1)),
            }
            at += len.max(1);
        }
        words.extend(["deadline-exceeded", "internal", "unavailable"].map(String::from));
        words.join(",")
    }
}

fn condition_of(field: &Field<'_>, depth: usize) -> Option<Set> {
    if depth > 16 {
        return field.fail("is nested too deeply", "at most 16 levels");
    }
    let parts =
        |list: Field<'_>| -> Option<Vec<Set>> { list.items().iter().map(|c| condition_of(c, depth + 1)).collect() };
    let mut set = [true; 500];
    let mut said = false;
    let mut and = |other: Set| {
        set.iter_mut().zip(other).for_each(|(a, b)| *a &= b);
        said = true;
    };
    if let Some(status) = field.get("status") {
        let bound = |name, otherwise| status.get(name).map_or(Some(otherwise), |f| f.int(100, 599));
        let (min, max) = (bound("min", 100)?, bound("max", 599)?);
        if min > max {
            return status.fail("min is above max", "a range such as {min: 500, max: 599}");
        }
        and(std::array::from_fn(|i| (min..=max).contains(&((i + FIRST) as i64))));
    }
    if let Some(all) = field.get("all") {
        parts(all)?.into_iter().for_each(&mut and);
    }
    if let Some(any) = field.get("any") {
        let parts = parts(any)?;
        and(std::array::from_fn(|i| parts.iter().any(|p| p[i])));
    }
    if let Some(not) = field.get("not") {
        and(condition_of(&not, depth + 1)?.map(|fits| !fits));
    }
    match said {
        true => Some(set),
        false => field.fail("has no condition", "status, all, any or not"),
    }
}
