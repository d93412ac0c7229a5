use super::*;
use bytes::Bytes;
use http::{HeaderName, HeaderValue};

#[derive(Debug, Default, PartialEq, Eq)]
struct List {
    fields: Vec<(String, String)>,
    bad: usize,
}

impl Sink for List {
    fn pseudo(&mut self, name: Pseudo, value: Bytes) {
        self.fields.push((name.text().into(), String::from_utf8_lossy(&value).into()));
    }

    fn field(&mut self, name: HeaderName, value: HeaderValue) {
        self.fields.push((name.as_str().into(), String::from_utf8_lossy(value.as_bytes()).into()));
    }

    fn bad(&mut self) {
        self.bad += 1;
    }
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let digit = |b: u8| (b as char).to_digit(16).unwrap() as u8;
    digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

#[track_caller]
fn reads(decoder: &mut Decoder, block: &str, fields: &[(&str, &str)]) {
    let mut list = List::default();
    assert_eq!(decoder.decode(&hex(block), 1 << 16, &mut list), Ok(true));
    let wanted: Vec<_> = fields.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
    assert_eq!(list, List { fields: wanted, bad: 0 });
}

#[test]
fn rfc_7541_c_2_single_fields() {
    let mut decoder = Decoder::default();
    reads(
        &mut decoder,
        "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
        &[("custom-key", "custom-header")],
    );
    assert_eq!(decoder.size(), 55);
    reads(&mut decoder, "040c 2f73 616d 706c 652f 7061 7468", &[(":path", "/sample/path")]);
    reads(&mut decoder, "8286", &[(":method", "GET"), (":scheme", "http")]);
    let mut sensitive = Vec::new();
    struct Sensitive<'a>(&'a mut Vec<bool>);
    impl Sink for Sensitive<'_> {
        fn pseudo(&mut self, _: Pseudo, _: Bytes) {}
        fn field(&mut self, _: HeaderName, value: HeaderValue) {
            self.0.push(value.is_sensitive());
        }
        fn bad(&mut self) {}
    }
    let block = hex("1008 7061 7373 776f 7264 0673 6563 7265 74");
    assert_eq!(decoder.decode(&block, 1000, &mut Sensitive(&mut sensitive)), Ok(true));
    assert_eq!(sensitive, [true]);
    assert_eq!(decoder.size(), 55);
}

#[test]
fn rfc_7541_c_3_and_4_requests() {
    let plain = [
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ];
    let huffman = [
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ];
    for [a, b, c] in [plain, huffman] {
        let mut decoder = Decoder::default();
        let usual = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")];
        reads(&mut decoder, a, &usual);
        assert_eq!(decoder.size(), 57);
        reads(&mut decoder, b, &[&usual[..], &[("cache-control", "no-cache")]].concat());
        assert_eq!(decoder.size(), 110);
        let last = [
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/index.html"),
            (":authority", "www.example.com"),
            ("custom-key", "custom-value"),
        ];
        reads(&mut decoder, c, &last);
        assert_eq!(decoder.size(), 164);
    }
}

/// With a table of 256 bytes, so that entries are evicted.
#[test]
fn rfc_7541_c_5_and_6_responses() {
    let plain = [
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d
         546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "4803 3330 37c1 c0bf",
        "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 666f
         6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b
         2076 6572 7369 6f6e 3d31",
    ];
    let huffman = [
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7
         8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335
         dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
    ];
    for [a, b, c] in [plain, huffman] {
        let mut decoder = Decoder::default();
        // The table is made small by the first block itself.
        let a = format!("3fe1 01 {a}");
        let location = ("location", "https://www.example.com");
        let private = ("cache-control", "private");
        let first = ("date", "Mon, 21 Oct 2013 20:13:21 GMT");
        reads(&mut decoder, &a, &[(":status", "302"), private, first, location]);
        assert_eq!(decoder.size(), 222);
        reads(&mut decoder, b, &[(":status", "307"), private, first, location]);
        assert_eq!(decoder.size(), 222);
        let second = ("date", "Mon, 21 Oct 2013 20:13:22 GMT");
        let cookie = ("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1");
        reads(&mut decoder, c, &[(":status", "200"), private, second, location, ("content-encoding", "gzip"), cookie]);
        assert_eq!(decoder.size(), 215);
    }
}

#[test]
fn the_static_table_is_the_rfcs() {
    for (index, name, value) in [
        (1, ":authority", ""),
        (14, ":status", "500"),
        (15, "accept-charset", ""),
        (16, "accept-encoding", "gzip, deflate"),
        (28, "content-length", ""),
        (31, "content-type", ""),
        (37, "from", ""),
        (38, "host", ""),
        (58, "user-agent", ""),
        (61, "www-authenticate", ""),
    ] {
        reads(&mut Decoder::default(), &format!("{:02x}", 0x80 | index), &[(name, value)]);
        assert!(usize::from(table::static_name(name)) <= index);
    }
}

#[test]
fn broken_blocks() {
    for block in [
        "80",
        "be",
        "ff80 8080 8080",
        "3fe2 1f",
        "82 20",
        "40",
        "4001",
        "0001 61",
        "4085 61",
        "ff",
        "7f ff ff ff ff 0f",
    ] {
        let mut list = List::default();
        assert_eq!(Decoder::default().decode(&hex(block), 1000, &mut list), Err(Invalid), "{block}");
    }
    // Not a name, not a value, a name of capitals: said, and the table goes on.
    let mut decoder = Decoder::default();
    let mut list = List::default();
    let block = hex("4001 4101 62  4001 6101 0a  4003 3a78 7801 62  82 be bf c0 7e01 63");
    assert_eq!(decoder.decode(&block, 1000, &mut list), Ok(true));
    assert_eq!((list.fields.len(), list.bad), (1, 7));
}

/// Past the limit nothing is handed on, and the table is what the peer's is.
#[test]
fn limits_do_not_lose_the_table() {
    let mut decoder = Decoder::default();
    let mut list = List::default();
    let mut block = hex("4001 6101 62");
    block.extend(hex("4001 63 01 64"));
    assert_eq!(decoder.decode(&block, 40, &mut list), Ok(false));
    assert_eq!(list.fields, [("a".into(), "b".into())]);
    reads(&mut decoder, "bebf", &[("c", "d"), ("a", "b")]);
    // A bomb: one entry, named again and again.
    let mut list = List::default();
    assert_eq!(decoder.decode(&[0xbe; 20_000], 1000, &mut list), Ok(false));
    assert_eq!(list.fields.len(), 1000 / 34);
}

struct Rng(u64);

impl Rng {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below as u64) as usize
    }
}

/// What the encoder writes the decoder reads, whatever repeats, is too large, or happens to the table meanwhile.
#[test]
fn round_trips() {
    let mut rng = Rng(0x1234_5678_9abc_def1);
    let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
    let names: Vec<HeaderName> =
        ["accept", "x-request-id", "user-agent", "accept-encoding", "x-a", "x-b", "cookie", "date"]
            .into_iter()
            .map(HeaderName::from_static)
            .collect();
    let mut bytes = (0, 0);
    for round in 0..5000 {
        if rng.next(200) == 0 {
            encoder.resize([0, 40, 100, 1000, 4096, 100_000][rng.next(6)]);
            encoder.resize([4096, 200, 4096][rng.next(3)]);
        }
        let mut block = Vec::new();
        let mut wanted = Vec::new();
        encoder.begin(&mut block);
        let path = format!("/{}", rng.next(50));
        for (name, value) in [(Pseudo::Method, "GET"), (Pseudo::Path, path.as_str()), (Pseudo::Authority, "a.test:80")]
        {
            encoder.pseudo(name, value.as_bytes(), &mut block);
            wanted.push((name.text().to_string(), value.to_string()));
        }
        for _ in 0..rng.next(12) {
            let name = &names[rng.next(names.len())];
            let value = match rng.next(5) {
                0 => "x".repeat(rng.next(1500)),
                1 => format!("{round}"),
                2 => "gzip, deflate".to_string(),
                _ => format!("value {}", rng.next(4)),
            };
            let mut field = HeaderValue::try_from(&value).unwrap();
            field.set_sensitive(rng.next(10) == 0);
            encoder.field(name, &field, &mut block);
            bytes.0 += name.as_str().len() + value.len();
            wanted.push((name.as_str().to_string(), value));
        }
        bytes.1 += block.len();
        let mut list = List::default();
        assert_eq!(decoder.decode(&block, 1 << 20, &mut list), Ok(true));
        assert_eq!(list, List { fields: wanted, bad: 0 });
    }
    println!("{} bytes of fields in {} of blocks", bytes.0, bytes.1);
}

/// What repeats costs a byte or two, and what does not is not put into the table.
#[test]
fn repeated_heads_are_short() {
    let mut encoder = Encoder::default();
    let mut last = 0;
    for request in 0..100 {
        let mut block = Vec::new();
        encoder.begin(&mut block);
        encoder.pseudo(Pseudo::Method, b"GET", &mut block);
        encoder.pseudo(Pseudo::Authority, b"reviews.default.svc.cluster.local", &mut block);
        for (name, value) in [
            ("user-agent", "something/1.0".to_string()),
            ("x-request-id", format!("{request:036}")),
            ("x-learned", format!("{request:016}")),
            ("x-mesh-hops", "1".to_string()),
        ] {
            let (name, value) = (HeaderName::from_static(name), HeaderValue::try_from(value).unwrap());
            encoder.field(&name, &value, &mut block);
        }
        last = block.len();
    }
    assert!(last <= 1 + 1 + 1 + (3 + 36) + (3 + 16) + 1, "{last}");
}

#[test]
fn noise() {
    let mut rng = Rng(0x9e37_79b9_7f4a_7c15);
    let mut decoder = Decoder::default();
    for _ in 0..50_000 {
        let block: Vec<u8> = (0..rng.next(40)).map(|_| rng.next(256) as u8).collect();
        let _ = decoder.decode(&block, 500, &mut List::default());
        assert!(decoder.size() <= TABLE);
    }
}

/// The encoder knows the whole entries of the static table by heart.
#[test]
fn whole_entries_are_the_tables() {
    for (i, (name, value)) in table::PSEUDO.iter().enumerate().skip(1) {
        let mut block = Vec::new();
        Encoder::default().pseudo(*name, value.as_bytes(), &mut block);
        assert_eq!(block, [0x80 | (i as u8 + 1)]);
    }
}
