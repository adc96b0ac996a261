const number = text => parseFloat(text.replace(/[,*]/g, ""));
const compare = (a, b) => {
  const [x, y] = [number(a), number(b)];
  if (isNaN(x) || isNaN(y)) return isNaN(x) && isNaN(y) ? a.localeCompare(b) : isNaN(x) - isNaN(y);
  return x - y;
};
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement;
    const table = head.closest("table");
    const rising = head.getAttribute("aria-sort") !== "ascending";
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const key = row => row.cells[head.cellIndex].textContent;
    const missing = row => ["missing", "–", "-"].includes(key(row));
    const rows = [...table.tBodies[0].rows].sort((a, b) =>
      missing(a) - missing(b) || (rising ? compare(key(a), key(b)) : compare(key(b), key(a))));
    table.tBodies[0].append(...rows);
  });
}
const fade = box => {
  box.classList.toggle("more-right", box.scrollWidth - box.clientWidth - box.scrollLeft > 1);
  box.classList.toggle("more-below", box.scrollHeight - box.clientHeight - box.scrollTop > 1);
};
const boxes = document.querySelectorAll(".scroll, figure");
const watch = new ResizeObserver(entries => entries.forEach(entry => fade(entry.target)));
for (const box of boxes) {
  box.addEventListener("scroll", () => fade(box));
  watch.observe(box);
}
