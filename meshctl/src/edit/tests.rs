use super::value::{get_mut, int, items_mut, list, map, put, remove, same, text};
use super::*;
use weft_testkit::rng::Rng;

fn first(text: &str) -> Node {
    read(split_mark(text).1).unwrap().remove(0)
}

/// The text after `change` of its first document.
fn edited(before: &str, change: impl FnOnce(&mut Node)) -> String {
    let mut node = first(before);
    let at = node.at;
    change(&mut node);
    rewrite(before, at, &node).unwrap_or_else(|r| panic!("{r:?} in\n{before}"))
}

fn spec(node: &mut Node) -> &mut Node {
    get_mut(node, "spec").unwrap()
}

fn items(node: &mut Node) -> &mut Vec<Node> {
    items_mut(get_mut(spec(node), "l")).unwrap()
}

#[test]
fn values_stay_as_they_are_written() {
    for (before, after) in [
        ("spec: {a: 1}", "spec: {a: 2}"),
        ("spec:\n  a: 1 # one\n", "spec:\n  a: 2 # one\n"),
        (
            "# head\nspec:   # here\n    b: x\n    a:   1   # one\r\n",
            "# head\nspec:   # here\n    b: x\n    a:   2   # one\r\n",
        ),
        ("\u{feff}spec: {\"a\": 1}\r\n", "\u{feff}spec: {\"a\": 2}\r\n"),
        ("spec:\n  ü: \"é\"\n  a: 1", "spec:\n  ü: \"é\"\n  a: 2"),
        ("spec:\n  a:\n  b: 1\n", "spec:\n  a: 2\n  b: 1\n"),
        ("spec:\n  a: # later\n  b: 1\n", "spec:\n  a: 2 # later\n  b: 1\n"),
        ("spec:\n  a: |\n    x\n    y\n\n  b: 1\n", "spec:\n  a: 2\n\n  b: 1\n"),
        ("spec:\n  a:\n    deep: [1]\n  b: 1\n", "spec:\n  a: 2\n  b: 1\n"),
        ("spec:\n  a:\n  - 1\n  - 3\n  b: 1\n", "spec:\n  a: 2\n  b: 1\n"),
        ("---\nspec: {a: 1}\n---\nspec: {a: 1}\n...\n", "---\nspec: {a: 2}\n---\nspec: {a: 1}\n...\n"),
        (
            "{\n  \"spec\": {\n    \"a\": 1,\n    \"b\": 1\n  }\n}\n",
            "{\n  \"spec\": {\n    \"a\": 2,\n    \"b\": 1\n  }\n}\n",
        ),
    ] {
        assert_eq!(edited(before, |n| put(spec(n), "a", int(2))), after, "{before:?}");
    }
    for (before, after) in [
        ("spec: {a: 'x'}", "spec: {a: '5xx,it''s'}"),
        ("spec: {a: \"x\"}", "spec: {a: \"5xx,it's\"}"),
        ("spec: {a: x}", "spec: {a: \"5xx,it's\"}"),
        ("spec:\n  a: x\n", "spec:\n  a: 5xx,it's\n"),
    ] {
        assert_eq!(edited(before, |n| put(spec(n), "a", text("5xx,it's"))), after);
    }
    for quoted in ["1", "yes", "1.5", "a: b", " x"] {
        let after = edited("spec:\n  a: x\n", |n| put(spec(n), "a", text(quoted)));
        assert_eq!(after, format!("spec:\n  a: \"{quoted}\"\n"));
    }
}

#[test]
fn fields_come() {
    let retries = || map([("attempts", int(3)), ("retryOn", text("5xx,reset"))]);
    for (before, after) in [
        ("spec: {a: 1}\n", "spec: {a: 1, r: {attempts: 3, retryOn: \"5xx,reset\"}}\n"),
        ("spec: { a: 1, }\n", "spec: { a: 1, r: {attempts: 3, retryOn: \"5xx,reset\"}, }\n"),
        ("spec: {}\n", "spec:\n  r:\n    attempts: 3\n    retryOn: 5xx,reset\n"),
        ("spec:\n  a: 1 # one\n# end\n", "spec:\n  a: 1 # one\n  r:\n    attempts: 3\n    retryOn: 5xx,reset\n# end\n"),
        ("spec:\n  a: {b: 1}", "spec:\n  a: {b: 1}\n  r: {attempts: 3, retryOn: \"5xx,reset\"}"),
        (
            "spec:\r\n    a:\r\n    - 1\r\n---\r\nb: 1\r\n",
            "spec:\r\n    a:\r\n    - 1\r\n    r:\r\n        attempts: 3\r\n        retryOn: 5xx,reset\r\n---\r\nb: 1\r\n",
        ),
        (
            "spec:\n  a: |\n    text\n\n\nx: 1\n",
            "spec:\n  a: |\n    text\n  r:\n    attempts: 3\n    retryOn: 5xx,reset\n\n\nx: 1\n",
        ),
        (
            "spec: {\n  a: 1, # one\n  b: 2 # two\n}\n",
            "spec: {\n  a: 1, # one\n  b: 2, # two\n  r: {attempts: 3, retryOn: \"5xx,reset\"}\n}\n",
        ),
        (
            "{\n  \"spec\": {\n    \"a\": 1\n  }\n}\n",
            "{\n  \"spec\": {\n    \"a\": 1,\n    \"r\": {\"attempts\": 3, \"retryOn\": \"5xx,reset\"}\n  }\n}\n",
        ),
    ] {
        assert_eq!(edited(before, |n| put(spec(n), "r", retries())), after, "{before:?}");
    }
    assert_eq!(edited("a: 1", |n| put(n, "spec", retries())), "a: 1\nspec:\n  attempts: 3\n  retryOn: 5xx,reset");
}

#[test]
fn fields_go() {
    for (before, after) in [
        ("spec: {a: 1, b: 2}\n", "spec: {b: 2}\n"),
        ("spec: {b: 2, a: 1}\n", "spec: {b: 2}\n"),
        ("spec: {b: 2, a: 1, }\n", "spec: {b: 2, }\n"),
        ("spec:\n  a: 1 # one\n  # two\n  b: 2\n", "spec:\n  # two\n  b: 2\n"),
        ("spec:\n  b: 2\n  # of a\n  a:\n    x: 1\n    y: 2\n# end\n", "spec:\n  b: 2\n  # of a\n# end\n"),
        ("spec:\n  b: 2\n  a: 1", "spec:\n  b: 2"),
        ("spec: {\n  a: 1,\n  b: 2\n}\n", "spec: {\n  b: 2\n}\n"),
        ("spec: {\n  b: 2, # two\n  a: 1 # one\n}\n", "spec: {\n  b: 2 # two # one\n}\n"),
    ] {
        assert_eq!(edited(before, |n| remove(spec(n), "a")), after, "{before:?}");
    }
    // The last one leaves an empty map.
    assert_eq!(edited("spec:\n  a: 1\nb: 1\n", |n| remove(spec(n), "a")), "spec: {}\nb: 1\n");
    // One that shares its line with a dash gives it to the next.
    let first_of = |n: &mut Node| remove(&mut items(n)[0], "a");
    assert_eq!(edited("spec:\n  l:\n  - a: 1 # one\n    b: 2\n", first_of), "spec:\n  l:\n  - b: 2\n");
    assert_eq!(
        edited("spec:\n  l:\n  - a: 1\n    # of b\n    b: 2\n", first_of),
        "spec:\n  l:\n  - # of b\n    b: 2\n"
    );
}

#[test]
fn elements_come_and_go() {
    let backend = |name: &str, weight: i64| map([("service", text(name)), ("weight", int(weight))]);
    for (before, after) in [
        (
            "spec:\n  l:\n  - {service: v1, weight: 1} # stable\n  - {service: v2, weight: 2}\n  # end\n",
            "spec:\n  l:\n  - {service: v1, weight: 1} # stable\n  - {service: v3, weight: 5}\n  - {service: v2, weight: 2}\n  # end\n",
        ),
        (
            "spec:\n  l:\n    - service: v1\n      weight: 1\n    # the second\n    - service: v2\n      weight: 2\n",
            "spec:\n  l:\n    - service: v1\n      weight: 1\n    - service: v3\n      weight: 5\n    # the second\n    - service: v2\n      weight: 2\n",
        ),
        (
            "spec: {l: [{service: v1, weight: 1}, {service: v2, weight: 2}]}",
            "spec: {l: [{service: v1, weight: 1}, {service: v3, weight: 5}, {service: v2, weight: 2}]}",
        ),
    ] {
        let come = edited(before, |n| items(n).insert(1, backend("v3", 5)));
        assert_eq!(come, after, "{before}");
        assert_eq!(edited(&come, |n| drop(items(n).remove(1))), before);
        assert_eq!(edited(before, |n| items(n)[1] = backend("v2", 7)), before.replace("weight: 2", "weight: 7"));
    }
    let before = "spec:\n  l:\n  - 1\n  - 2\n";
    assert_eq!(edited(before, |n| items(n).insert(0, int(0))), "spec:\n  l:\n  - 0\n  - 1\n  - 2\n");
    assert_eq!(edited(before, |n| items(n).push(int(3))), "spec:\n  l:\n  - 1\n  - 2\n  - 3\n");
    assert_eq!(edited(before, |n| drop(items(n).remove(0))), "spec:\n  l:\n  - 2\n");
    assert_eq!(edited(before, |n| items(n).clear()), "spec:\n  l: []\n");
    let deep = "spec:\n  l:\n  - - 1\n    - 2\n";
    assert_eq!(
        edited(deep, |n| items(n)[0] = list([int(1), int(5), int(2)])),
        "spec:\n  l:\n  - - 1\n    - 5\n    - 2\n"
    );
}

#[test]
fn what_others_may_mean_is_not_touched() {
    let refused = |before: &str, change: &dyn Fn(&mut Node)| {
        let mut node = first(before);
        let at = node.at;
        change(&mut node);
        rewrite(before, at, &node).unwrap_err()
    };
    let a = |n: &mut Node| put(spec(n), "a", int(2));
    for before in
        ["spec: {a: &x 1, b: *x}\n", "x: &x 1\nspec:\n  a: *x\n", "spec: &x\n  a: 1\n  b: 1\n", "spec: {a: !!int 1}\n"]
    {
        let refusal = refused(before, &a);
        assert!(refusal.why.contains("an anchor, an alias or a tag"), "{refusal:?}");
    }
    // Beside them there is no danger.
    assert_eq!(edited("spec: {a: 1, b: &x 1, c: *x}\n", a), "spec: {a: 2, b: &x 1, c: *x}\n");
    // An anchor that is taken away while somebody means it.
    let gone = refused("spec:\n  a: &x 1\n  b: *x\n", &|n| remove(spec(n), "a"));
    assert!(gone.why.contains("unreadable"), "{gone:?}");
    assert_eq!(rewrite("a: 1\n", Pos { line: 7, column: 1 }, &map([])).unwrap_err().at.line, 7);
}

#[test]
fn documents_go_and_are_replaced() {
    let three = "# file\n\n# of a\na: 1\n---\n# of b\nb: 1\n--- # third\nc: 1\n";
    let at = |i: usize| read(three).unwrap()[i].at;
    assert_eq!(without(three, at(0)).unwrap().unwrap(), "# file\n\n---\n# of b\nb: 1\n--- # third\nc: 1\n");
    assert_eq!(without(three, at(1)).unwrap().unwrap(), "# file\n\n# of a\na: 1\n--- # third\nc: 1\n");
    assert_eq!(without(three, at(2)).unwrap().unwrap(), "# file\n\n# of a\na: 1\n---\n# of b\nb: 1\n");
    assert_eq!(without("# alone\na: 1\n", Pos { line: 2, column: 1 }).unwrap(), None);
    let listed = "kind: List\nitems:\n- a: 1\n# of b\n- b: 2\n";
    assert_eq!(without(listed, Pos { line: 3, column: 3 }).unwrap().unwrap(), "kind: List\nitems:\n# of b\n- b: 2\n");

    let new = "# new\nb: 2 # two\nd:\n  e: 1\n";
    let node = first(new);
    let source = Source { node: &node, file: new };
    let after = replace(three, at(1), &source).unwrap();
    assert_eq!(after, "# file\n\n# of a\na: 1\n---\n# of b\nb: 2 # two\nd:\n  e: 1\n--- # third\nc: 1\n");
    assert_eq!(replace(&after, at(1), &source).unwrap(), after, "what is equal is left alone");
    let listed = replace(listed, Pos { line: 5, column: 3 }, &source).unwrap();
    assert_eq!(listed, "kind: List\nitems:\n- a: 1\n# of b\n- b: 2\n  d:\n    e: 1\n");
    let windows = three.replace('\n', "\r\n");
    assert_eq!(replace(&windows, at(1), &source).unwrap(), after.replace('\n', "\r\n"));
    assert_eq!(source.whole(), new);
    let flow = Source { node: &first("{a: {b: 1}}"), file: "{a: {b: 1}}" };
    assert_eq!(flow.whole(), "a:\n  b: 1\n");
}

/// Trees in every layout that the generator knows, with one leaf marked.
struct Layouts {
    rng: Rng,
    out: String,
    eol: &'static str,
    step: usize,
    dash: usize,
    /// Where each leaf stands, and what it is.
    leaves: Vec<(std::ops::Range<usize>, Vec<Step>)>,
    comments: usize,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Key(String),
    Index(usize),
}

impl Layouts {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let eol = if rng.below(3) == 0 { "\r\n" } else { "\n" };
        let (step, dash) = (2 + rng.below(3) as usize, 2 * rng.below(2) as usize);
        Self { rng, out: String::new(), eol, step, dash, leaves: Vec::new(), comments: 0 }
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.rng.below(one_in) == 0
    }

    fn end(&mut self) {
        if self.chance(4) {
            self.comments += 1;
            self.out += &format!("{}# remark {}", " ".repeat(1 + self.comments % 2), self.comments);
        }
        self.out += self.eol;
        while self.chance(9) {
            self.out += self.eol;
        }
    }

    fn remark(&mut self, indent: usize) {
        if self.chance(5) {
            self.comments += 1;
            self.out += &format!("{}# about {}, '{{[&*{}", " ".repeat(indent), self.comments, self.eol);
        }
    }

    fn leaf(&mut self, path: &[Step], flow: bool) {
        let plain = ["x", "5xx", "10s", "a b", "v1.2", "http://a:80/b", "é"];
        let word = plain[self.rng.below(plain.len() as u64) as usize];
        let text = match self.rng.below(7) {
            0 => format!("\"{word}, # \\\" no\""),
            1 => format!("'{word}: it''s'"),
            2 => self.rng.below(2000).to_string(),
            3 => "true".into(),
            4 if !flow => "a,b}]".into(),
            _ => word.into(),
        };
        let start = self.out.len();
        self.out += &text;
        self.leaves.push((start..self.out.len(), path.to_vec()));
    }

    fn flow(&mut self, path: &[Step], depth: usize) {
        let (lists, lines) = (self.chance(2), self.chance(4));
        let gap = if self.chance(2) { " " } else { "" };
        self.out += if lists { "[" } else { "{" };
        let count = 1 + self.rng.below(3) as usize;
        for i in 0..count {
            if lines {
                self.out += &format!("{}{}", self.eol, " ".repeat(20));
            } else if i > 0 {
                self.out.push(' ');
            } else {
                self.out += gap;
            }
            let step = if lists { Step::Index(i) } else { Step::Key(format!("k{i}")) };
            if let Step::Key(key) = &step {
                let key = if self.chance(4) { format!("\"{key}\": ") } else { format!("{key}: ") };
                self.out += &key;
            }
            let path = [path, &[step]].concat();
            if depth > 0 && self.chance(3) {
                self.flow(&path, depth - 1)
            } else {
                self.leaf(&path, true)
            }
            if i + 1 < count || self.chance(5) {
                self.out.push(',');
            }
        }
        self.out += gap;
        self.out += if lists { "]" } else { "}" };
    }

    fn map(&mut self, path: &[Step], indent: usize, depth: usize, first_in_line: bool) {
        for i in 0..1 + self.rng.below(3) {
            if i > 0 || !first_in_line {
                self.remark(indent);
                self.out += &" ".repeat(indent);
            }
            let key = format!("f{i}");
            let shown = if self.chance(5) { format!("\"{key}\":") } else { format!("{key}:") };
            self.out += &shown;
            let path = [path, &[Step::Key(key)]].concat();
            match self.rng.below(if depth > 0 { 6 } else { 3 }) {
                0 => {
                    self.out.push(' ');
                    self.flow(&path, 1);
                    self.end();
                }
                3 => {
                    self.end();
                    self.map(&path, indent + self.step, depth - 1, false);
                }
                4 => {
                    self.end();
                    self.list(&path, indent + self.dash, depth - 1);
                }
                5 => {
                    let pad = " ".repeat(indent + self.step);
                    self.out += &format!(" |{0}{pad}# no remark{0}{0}{pad}  text: 1{0}", self.eol);
                }
                _ => {
                    self.out += &" ".repeat(1 + self.rng.below(2) as usize);
                    self.leaf(&path, false);
                    self.end();
                }
            }
        }
    }

    fn list(&mut self, path: &[Step], indent: usize, depth: usize) {
        for i in 0..1 + self.rng.below(3) as usize {
            self.remark(indent);
            self.out += &format!("{}- ", " ".repeat(indent));
            let path = [path, &[Step::Index(i)]].concat();
            match self.rng.below(if depth > 0 { 3 } else { 2 }) {
                0 => {
                    self.flow(&path, 1);
                    self.end();
                }
                2 => self.map(&path, indent + 2, depth - 1, true),
                _ => {
                    self.leaf(&path, false);
                    self.end();
                }
            }
        }
    }

    /// Several documents; the paths of all leaves begin with the document's number.
    fn all(mut self) -> Self {
        for i in 0..1 + self.rng.below(3) as usize {
            if i > 0 || self.chance(2) {
                self.out += "---";
                self.end();
            }
            self.map(&[Step::Index(i)], 0, 3, false);
        }
        if self.chance(6) {
            self.out.truncate(self.out.trim_end().len());
        }
        self
    }
}

fn at<'n>(node: &'n mut Node, path: &[Step]) -> &'n mut Node {
    path.iter().fold(node, |node, step| match step {
        Step::Key(key) => get_mut(node, key).unwrap(),
        Step::Index(i) => &mut items_mut(Some(node)).unwrap()[*i],
    })
}

#[test]
fn of_any_layout_only_the_value_changes() {
    let mut edits = 0;
    for seed in 0..150 {
        let layout = Layouts::new(seed).all();
        let before = &layout.out;
        let documents = read(before).unwrap_or_else(|r| panic!("{seed}: {r:?} in\n{before}"));
        for (range, path) in &layout.leaves {
            let Step::Index(i) = path[0] else { panic!("a document's number") };
            let mut wanted = documents[i].clone();
            let leaf = at(&mut wanted, &path[1..]);
            leaf.value = if same(leaf, &int(4711)) { int(4712).value } else { int(4711).value };
            let after = rewrite(before, documents[i].at, &wanted)
                .unwrap_or_else(|r| panic!("{seed}: {path:?}: {r:?} in\n{before}"));
            assert_eq!(after[..range.start], before[..range.start], "{seed}: {path:?}");
            assert_eq!(after[range.start + 4..], before[range.end..], "{seed}: {path:?}");
            edits += 1;
        }
    }
    assert!(edits > 1_000, "{edits}");
}

/// Fields and elements come and go in all these layouts: what is meant is checked by the editor itself, so here it is that it
/// can be done, and that no remark is lost when something comes.
#[test]
fn of_any_layout_parts_come_and_go() {
    let (mut come, mut gone) = (0, 0);
    for seed in 0..120 {
        let layout = Layouts::new(seed).all();
        let before = &layout.out;
        let documents = read(before).unwrap();
        let mut parents: Vec<&[Step]> = layout.leaves.iter().map(|(_, path)| &path[..path.len() - 1]).collect();
        parents.dedup();
        for path in parents {
            let Step::Index(i) = path[0] else { panic!("a document's number") };
            let mut wanted = documents[i].clone();
            let parent = at(&mut wanted, &path[1..]);
            let new = map([("name", text("a: b")), ("weight", int(9)), ("l", list([int(1)]))]);
            match items_mut(Some(parent)) {
                Some(items) => items.insert(items.len() / 2, new),
                None => put(parent, "new", new),
            }
            let after = rewrite(before, documents[i].at, &wanted)
                .unwrap_or_else(|r| panic!("{seed}: {path:?}: {r:?} in\n{before}"));
            for n in 1..=layout.comments {
                let (remark, about) = (format!("# remark {n}"), format!("# about {n},"));
                let count = |text: &str| text.matches(&remark).count() + text.matches(&about).count();
                assert_eq!(count(&after), count(before), "{seed}: {path:?}: {before}\n=>\n{after}");
            }
            come += 1;
            // And away again, the first part as well as what was new.
            let mut less = documents[i].clone();
            match &mut at(&mut less, &path[1..]).value {
                Value::List(items) => drop(items.remove(0)),
                Value::Map(items) if path.len() > 1 || items.len() > 1 => drop(items.remove(0)),
                _ => continue,
            }
            let fewer = rewrite(before, documents[i].at, &less);
            fewer.unwrap_or_else(|r| panic!("{seed}: {path:?}: {r:?} in\n{before}"));
            rewrite(&after, documents[i].at, &documents[i])
                .unwrap_or_else(|r| panic!("{seed}: {path:?}: {r:?} in\n{after}"));
            gone += 2;
        }
    }
    assert!(come > 400 && gone > 800, "{come} {gone}");
}

/// Texts that somebody broke, or that break this editor's expectations: it refuses, or what it makes is right.
#[test]
fn broken_texts_do_no_harm() {
    let odd = [
        "\n", "\r", "\t", "-", ":", "#", "{", "}", "[", "]", ",", "&a ", "*a", "!!str ", "|", ">", "\"", "'", "? ",
        "---\n", "é", "\u{feff}", " ",
    ];
    let (mut rng, mut refused, mut edits) = (Rng::new(7), 0, 0);
    for seed in 0..400 {
        let mut text = Layouts::new(seed).all().out;
        for _ in 0..1 + rng.below(3) {
            let places: Vec<usize> = text.char_indices().map(|(i, _)| i).collect();
            let at = places[rng.below(places.len() as u64) as usize];
            match rng.below(3) {
                0 => drop(text.remove(at)),
                1 => text.insert_str(at, odd[rng.below(odd.len() as u64) as usize]),
                _ => text.truncate(at.max(1)),
            }
            if text.is_empty() {
                text.push('a');
            }
        }
        let Ok(documents) = read(split_mark(&text).1) else { continue };
        for document in &documents {
            let mut wanted = document.clone();
            let Value::Map(items) = &mut wanted.value else { continue };
            match rng.below(3) {
                0 if items.len() > 1 => drop(items.pop()),
                1 => items.push(("new".into(), Pos::default(), text_of_lines())),
                _ => items[0].2 = map([("a", int(1))]),
            }
            match rewrite(&text, document.at, &wanted) {
                Ok(after) => {
                    let found = read(split_mark(&after).1).unwrap();
                    assert!(found.iter().any(|d| same(d, &wanted)), "{seed}: {text}\n=>\n{after}");
                    edits += 1;
                }
                Err(_) => refused += 1,
            }
            let _ = without(&text, document.at);
        }
    }
    assert!(edits > 150 && refused < edits / 4, "{edits} edits, {refused} refused");
}

fn text_of_lines() -> Node {
    text("two\nlines\n")
}
