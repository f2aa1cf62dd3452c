"use strict";
/* Text from outside: every string reaches the page as text, never as markup. */

const INVISIBLE = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Co}\p{Cn}\p{Cs}\p{Default_Ignorable_Code_Point}\u2800]|[^\S \n\t]/gu;
const NAMED = { "\n": "↵", "\t": "⇥", "\r": "␍" };

/** A character that would not be seen, or would reorder what is beside it, as a sign of its own. */
function sign(character) {
  if (NAMED[character]) return NAMED[character];
  const code = character.codePointAt(0);
  if (code < 32) return String.fromCodePoint(0x2400 + code);
  if (code === 127) return "␡";
  return "⟨U+" + code.toString(16).toUpperCase().padStart(4, "0") + "⟩";
}

/** Text as one line in which control, format and unusual space characters are visible. */
function visible(text) {
  return String(text).replace(INVISIBLE, sign);
}

/** A token's text in which ordinary spaces are visible, too. */
function visibleToken(text) {
  return text === "" ? "∅" : visible(text).replace(/ /g, "·");
}

/** An element. Attributes: `on…` are listeners, `class`, `text`, and all others as they are. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "text") node.textContent = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const percent = (share, digits = 1) =>
  share === null || share === undefined || Number.isNaN(share) ? "–" : (100 * share).toFixed(digits) + " %";

/** A number with so many decimals, thousands apart; text as it is. */
function number(value, digits = 0) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (typeof value !== "number") return visible(value);
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** A small number with three significant digits. */
function significant(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  return Math.abs(value) < 1e-3 ? value.toExponential(1).replace("e-", "e−") : String(Number(value.toPrecision(3)));
}

/** Read out by screen readers, not shown. */
function announce(text) {
  document.getElementById("said").textContent = text;
}
