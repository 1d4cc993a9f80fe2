// Without this script, the page lacks only the search: the other filters are done by its style.
const field = document.querySelector("[type=search]"), count = document.querySelector("output");
const cards = [...document.querySelectorAll("article")].map(card => [card, card.textContent.toLowerCase()]);
function show() {
  const words = field.value.toLowerCase().split(/\s+/);
  for (const [card, text] of cards) card.hidden = !words.every(word => text.includes(word));
  const shown = cards.filter(([card]) => card.offsetParent).length;
  count.textContent = shown === cards.length ? "" : `${shown} of ${cards.length} shown`;
}
document.querySelector(".search").hidden = count.hidden = false;
document.querySelector("form").addEventListener("input", show);
document.querySelector("form").addEventListener("submit", event => event.preventDefault());
