/* The bytes of tokens, and the characters that several of them split. `doc` is that of heatmap.js. */
"use strict";

const RptCharacters = (() => {
  /** All bytes of token `i` in hexadecimal. */
  function allBytes(doc, i) {
    return doc.raw?.[i]?.match(/../g) ?? Array.from(new TextEncoder().encode(doc.tokens[i]), (byte) => byte.toString(16).padStart(2, "0"));
  }

  /** The first 24 bytes of token `i` in hexadecimal. */
  function bytesOf(doc, i) {
    const bytes = allBytes(doc, i);
    const shown = bytes.slice(0, 24).join(" ");
    return bytes.length > 24 ? `${shown} … (${bytes.length})` : shown;
  }

  /** The text of token `i` as lists of likely tokens write it: \xNN for the bytes of a part of a character. */
  function exactText(doc, i) {
    if (!doc.raw?.[i]) return doc.tokens[i];
    const bytes = Uint8Array.from(allBytes(doc, i), (hex) => parseInt(hex, 16));
    try {
      return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    } catch {
      return Array.from(bytes, (byte) => (byte < 128 ? String.fromCharCode(byte) : `\\x${byte.toString(16)}`)).join("");
    }
  }

  const PIECES = 4; // most tokens of one character of UTF-8

  /** For every token: the token in which its character begins, and how many tokens that character has. */
  function splitCharacters(tokens) {
    const head = tokens.map((_, i) => i);
    const pieces = tokens.map(() => 1);
    for (let i = 1; i < tokens.length; i += 1) {
      if (tokens[i] !== "" || pieces[head[i - 1]] === PIECES) continue;
      head[i] = head[i - 1];
      pieces[head[i]] += 1;
    }
    return { head, pieces };
  }

  return { bytesOf, exactText, splitCharacters };
})();
