//! The static Huffman code, read four bits at a time. The code is canonical, so its lengths are all there is to know.

use super::Invalid;

/// Bits of each symbol's code; the last is the end of string, which may only be padding.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26, 30,
];

const END: u16 = 256;
/// From here on a child is a leaf.
const LEAF: u16 = 256;

const fn tree() -> [[u16; 2]; 256] {
    let mut nodes = [[0; 2]; 256];
    let mut used = 1;
    let (mut code, mut length) = (0u32, 1u8);
    while length <= 30 {
        code <<= 1;
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol] == length {
                let (mut node, mut bit) = (0, length);
                while bit > 1 {
                    bit -= 1;
                    let side = (code >> bit & 1) as usize;
                    if nodes[node][side] == 0 {
                        nodes[node][side] = used;
                        used += 1;
                    }
                    node = nodes[node][side] as usize;
                }
                nodes[node][(code & 1) as usize] = LEAF + symbol as u16;
                code += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    nodes
}

#[derive(Clone, Copy)]
struct Step {
    next: u8,
    symbol: u8,
    what: u8,
}

const NOTHING: u8 = 0;
const EMIT: u8 = 1;
const FAIL: u8 = 2;

static STEPS: [[Step; 16]; 256] = steps();
/// Where a string may end: at most seven bits of ones after its last symbol.
static MAY_END: [bool; 256] = may_end();

const fn steps() -> [[Step; 16]; 256] {
    let nodes = tree();
    let mut steps = [[Step { next: 0, symbol: 0, what: NOTHING }; 16]; 256];
    let mut state = 0;
    while state < 256 {
        let mut nibble = 0;
        while nibble < 16 {
            let mut step = Step { next: 0, symbol: 0, what: NOTHING };
            let (mut node, mut bit) = (state, 4);
            while bit > 0 {
                bit -= 1;
                let child = nodes[node][nibble >> bit & 1];
                if child == LEAF + END {
                    step.what = FAIL;
                    node = 0;
                } else if child >= LEAF {
                    // Codes have five bits or more, so there is at most one in four.
                    if step.what == NOTHING {
                        step.what = EMIT;
                        step.symbol = (child - LEAF) as u8;
                    }
                    node = 0;
                } else {
                    node = child as usize;
                }
            }
            step.next = node as u8;
            steps[state][nibble] = step;
            nibble += 1;
        }
        state += 1;
    }
    steps
}

const fn may_end() -> [bool; 256] {
    let nodes = tree();
    let mut may = [false; 256];
    let (mut node, mut bits) = (0, 0);
    while bits < 8 {
        may[node] = true;
        node = nodes[node][1] as usize;
        bits += 1;
    }
    may
}

pub fn decode(src: &[u8]) -> Result<Vec<u8>, Invalid> {
    let mut out = Vec::with_capacity(src.len() * 8 / 5 + 1);
    let mut state = 0u8;
    for byte in src {
        for nibble in [byte >> 4, byte & 15] {
            let step = STEPS[usize::from(state)][usize::from(nibble)];
            match step.what {
                NOTHING => {}
                EMIT => out.push(step.symbol),
                _ => return Err(Invalid),
            }
            state = step.next;
        }
    }
    if MAY_END[usize::from(state)] { Ok(out) } else { Err(Invalid) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes() -> Vec<(u32, u8)> {
        let mut codes = vec![(0, 0); 257];
        let mut code = 0;
        for length in 1..=30 {
            code <<= 1;
            for symbol in 0..257 {
                if LENGTHS[symbol] == length {
                    codes[symbol] = (code, length);
                    code += 1;
                }
            }
        }
        assert_eq!(code, 1 << 30, "the code is complete");
        codes
    }

    fn encode(text: &[u8]) -> Vec<u8> {
        let codes = codes();
        let mut bits = Vec::new();
        for byte in text {
            let (code, length) = codes[usize::from(*byte)];
            bits.extend((0..length).rev().map(|b| code >> b & 1 == 1));
        }
        while bits.len() % 8 != 0 {
            bits.push(true);
        }
        bits.chunks(8).map(|c| c.iter().fold(0, |byte, bit| byte << 1 | u8::from(*bit))).collect()
    }

    #[test]
    fn every_symbol_in_every_place() {
        for symbol in 0..=255u8 {
            for before in 0..9 {
                let text = [vec![b'0'; before], vec![symbol], b"a~".to_vec()].concat();
                assert_eq!(decode(&encode(&text)), Ok(text));
            }
        }
        // As in RFC 7541, C.4.1.
        let name = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decode(&name).as_deref(), Ok(&b"www.example.com"[..]));
        assert_eq!(decode(b""), Ok(Vec::new()));
    }

    #[test]
    fn padding_is_few_ones() {
        // '0' is 00000: three bits of padding.
        assert_eq!(decode(&[0b0000_0111]).as_deref(), Ok(&b"0"[..]));
        assert_eq!(decode(&[0b0000_0110]), Err(Invalid));
        assert_eq!(decode(&[0b0000_0111, 0xff]), Err(Invalid));
        assert_eq!(decode(&[0xff]), Err(Invalid));
        assert_eq!(decode(&[0xff; 4]), Err(Invalid), "the end of string itself");
    }
}
