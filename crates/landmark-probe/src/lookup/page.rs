//! What was looked up, as a page: one file that opens in any browser, asks nothing of a network, and runs nothing but its own script.
//!
//! The text is hostile until shown: every piece of it is escaped, control characters become visible, and the page's own
//! policy forbids any script, style, image or connection but the one script and style that stand in it (by their
//! SHA-256). So even an escape forgotten here would execute nothing.
//!
//! The text is in the page as text, a paragraph for each block, and can be read without scripts. Browsers leave out of their work what is not in view (`content-visibility`, by
//! groups of blocks), so tens of thousands of blocks are no burden; the strip above them is a canvas, a column of which may stand
//! for many blocks. Weights are numbers in a data block, in ten-thousandths. Rejected: a list made by script as one scrolls, in which
//! a browser's own search would find nothing.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::Lookup;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Blocks whose layout a browser leaves out together.
const GROUP: usize = 40;

/// Weights are sent in so many parts of one.
const PARTS: f32 = 10_000.0;

/// What the script reads.
#[derive(Serialize)]
struct Data<'a> {
    layers: usize,
    heads: usize,
    blocks: usize,
    needle: &'a [usize],
    /// By token: triples of layer · heads + head, block, ten-thousandths.
    fetched: Vec<Vec<usize>>,
}

pub(super) fn to_html(lookup: &Lookup) -> String {
    // What is hashed is what a browser sees, which knows no carriage returns.
    let (style, script) = (STYLE.replace('\r', ""), SCRIPT.replace('\r', ""));
    let title = escape(&lookup.title);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src {}; script-src {}; \
         base-uri 'none'; form-action 'none'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"referrer\" content=\"no-referrer\">\n\
         <title>What was looked up: {title}</title>\n<style>{style}</style>\n</head>\n<body>\n",
        source(&style),
        source(&script),
    );
    let _ = write!(
        page,
        "<header>\n<h1>What was looked up <small>{title}</small></h1>\n\
         <noscript><p>Without scripts this page shows the text alone.</p></noscript>\n\
         <div id=\"controls\">\n<fieldset id=\"tokens\"><legend>Token of the answer</legend>\n\
         <label><input type=\"radio\" name=\"token\" value=\"all\" checked><span>all</span></label>\n"
    );
    for (number, token) in lookup.answer.iter().enumerate() {
        let shown = if token.text.trim().is_empty() { "␣" } else { token.text.trim() };
        let _ = writeln!(
            page,
            "<label><input type=\"radio\" name=\"token\" value=\"{number}\"><span>{}</span></label>",
            escape(shown)
        );
    }
    page += "</fieldset>\n";
    select(&mut page, "layer", "Layer", lookup.layers);
    select(&mut page, "head", "Head", lookup.heads);
    page += "<button id=\"previous\" type=\"button\">Previous block <kbd>p</kbd></button>\n\
             <button id=\"next\" type=\"button\">Next block <kbd>n</kbd></button>\n</div>\n\
             <canvas id=\"strip\" height=\"48\" role=\"img\" aria-label=\"All blocks, from first to last, by share\"></canvas>\n\
             <p id=\"status\" role=\"status\"></p>\n</header>\n\
             <main>\n<section id=\"top\" aria-label=\"Blocks by share\"><h2>Looked up most</h2><ol></ol></section>\n\
             <section id=\"text\" aria-label=\"The text\"><h2>The text</h2>\n";
    write_blocks(&mut page, lookup);
    if !lookup.rest.is_empty() {
        let _ = writeln!(page, "<p id=\"rest\">{}</p>", escape(&lookup.rest));
    }
    let _ = writeln!(
        page,
        "</section>\n</main>\n<script type=\"application/json\" id=\"data\">{}</script>\n<script>{script}</script>\n</body>\n</html>",
        data(lookup)
    );
    page
}

fn write_blocks(page: &mut String, lookup: &Lookup) {
    for (group, blocks) in lookup.blocks.chunks(GROUP).enumerate() {
        *page += "<div class=\"group\">\n";
        for (place, block) in blocks.iter().enumerate() {
            let number = group * GROUP + place;
            let class = if lookup.needle.contains(&number) { " class=\"needle\"" } else { "" };
            let _ = writeln!(
                page,
                "<p id=\"b{number}\" data-n=\"{number}\"{class} title=\"block {number}, from token {}\">{}</p>",
                block.first_token,
                escape(&block.text)
            );
        }
        *page += "</div>\n";
    }
}

/// A choice of one of `count`, or all.
fn select(page: &mut String, id: &str, label: &str, count: usize) {
    let _ = write!(page, "<label>{label} <select id=\"{id}\"><option value=\"all\">all</option>");
    for number in 0..count {
        let _ = write!(page, "<option>{number}</option>");
    }
    *page += "</select></label>\n";
}

/// The weights as JSON that can stand in a page: no `<`, so no end of the element and no comment.
fn data(lookup: &Lookup) -> String {
    let fetched = lookup.answer.iter().map(|token| {
        let triple = |fetch: &super::Fetch| {
            let parts = (fetch.weight * PARTS).round() as usize;
            [fetch.layer * lookup.heads + fetch.head, fetch.block, parts]
        };
        token.fetched.iter().flat_map(triple).collect()
    });
    let data = Data {
        layers: lookup.layers,
        heads: lookup.heads,
        blocks: lookup.blocks.len(),
        needle: &lookup.needle,
        fetched: fetched.collect(),
    };
    // Numbers alone; they have a form in JSON.
    serde_json::to_string(&data).unwrap_or_default().replace('<', "\\u003c")
}

/// How a policy names a text that it allows.
fn source(text: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text.as_bytes())))
}

/// Text as HTML, in an element or in a quoted attribute. Control characters become their pictures (U+2400...).
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + text.len() / 16);
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            '\n' | '\t' => escaped.push(c),
            '\0'..='\x1f' => escaped.push(char::from_u32(0x2400 + u32::from(c)).unwrap_or('\u{fffd}')),
            '\x7f'..='\u{9f}' => escaped.push('\u{fffd}'),
            _ => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::tests::{fetch, lookup};
    use super::super::{AnswerToken, Block};
    use super::*;

    #[test]
    fn the_page_holds_text_weights_and_nothing_from_elsewhere() {
        let page = lookup().to_html();
        assert!(page.contains("<p id=\"b1\" data-n=\"1\" class=\"needle\" title=\"block 1, from token 8\">The pass key is 4711, remember</p>"));
        assert!(page.contains("<p id=\"rest\">What is it?</p>"));
        assert!(page.contains("\"fetched\":[[0,1,5000,1,0,2500,2,1,7500,2,3,1250],[3,2,10000]]"));
        assert!(page.contains("value=\"1\"><span>11</span>"));
        for foreign in ["http:", "https:", "src=", "url(", "import", "javascript:", " on"] {
            let found = page.match_indices(foreign).filter(|(at, _)| {
                foreign != " on"
                    || page[*at..]
                        .split('=')
                        .next()
                        .is_some_and(|name| name[3..].chars().all(char::is_alphabetic))
            });
            assert_eq!(found.count(), 0, "{foreign}");
        }
    }

    /// The policy allows the very script and style that are in the page: hashes of what stands between the tags.
    #[test]
    fn the_policy_names_its_own_script_and_style() {
        let page = lookup().to_html();
        for (tag, directive) in [("style", "style-src"), ("script", "script-src")] {
            let text =
                page.rsplit_once(&format!("<{tag}>")).unwrap().1.split_once(&format!("</{tag}>")).unwrap().0;
            let allowed = page.split_once(directive).unwrap().1.split_once(';').unwrap().0.trim();
            assert_eq!(allowed, source(text));
            assert!(text.len() > 500);
        }
        assert!(page.contains("default-src 'none'") && !page.contains("-inline"));
        // The published hash of the empty text.
        assert_eq!(source(""), "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='");
    }

    #[test]
    fn hostile_text_stays_text() {
        let evil = "</p></script><script>alert(1)</script><!--\"' onload=x \0\x1b";
        let mut lookup = lookup();
        let clean = lookup.to_html();
        lookup.title = evil.into();
        lookup.rest = evil.into();
        lookup.blocks[0] = Block { text: evil.into(), first_token: 0 };
        lookup.answer.push(AnswerToken { text: evil.into(), fetched: vec![fetch(0, 0, 0, 0.5)] });
        let page = lookup.to_html();
        let tags = |page: &str, tag: &str| page.matches(tag).count();
        for tag in ["<script", "</script>", "</p>", "<!--", "<p", "</title>"] {
            assert_eq!(tags(&page, tag), tags(&clean, tag), "{tag}");
        }
        assert_eq!(
            tags(&page, "&lt;script&gt;alert(1)&lt;/script&gt;"),
            5,
            "title twice, rest, block, token"
        );
        assert!(page.contains("&quot;&#39; onload=x ␀␛") && !page.contains(['\0', '\x1b']));
    }

    #[test]
    fn long_memories_make_pages_of_their_own_size() {
        let mut lookup = lookup();
        lookup.blocks =
            (0..20_000).map(|n| Block { text: "word ".repeat(60), first_token: n * 63 }).collect();
        let page = lookup.to_html();
        assert_eq!(page.matches("class=\"group\"").count(), 500);
        assert!(page.len() < 20_000 * 400, "{}", page.len());
    }
}
