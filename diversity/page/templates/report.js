// The buttons show and hide pictures and columns; where no script runs, everything is shown.
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
