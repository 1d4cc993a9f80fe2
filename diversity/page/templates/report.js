// The buttons show and hide pictures and columns. Without scripts everything is visible.
const filters = document.querySelector(".filters");
if (filters) {
  filters.hidden = false;
  filters.addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (!button) return;
    const shown = button.getAttribute("aria-pressed") === "false";
    button.setAttribute("aria-pressed", shown);
    for (const element of document.querySelectorAll(`.pictures [data-of="${button.value}"]`)) element.hidden = !shown;
  });
}
