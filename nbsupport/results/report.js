// Moves the sliders over ε, and opens everything for printing.
// Without it the page shows the first frame and all tables.
for (const frames of document.querySelectorAll(".frames")) {
  const { labels, words, notes, truth } = JSON.parse(frames.querySelector("script").textContent);
  const slider = frames.querySelector("input");
  const show = () => {
    const row = Number(slider.value);
    slider.setAttribute("aria-valuetext", labels[row]);
    frames.querySelector("output").textContent = `ε = ${labels[row]}`;
    frames.querySelectorAll(".panels > div").forEach((panel, column) => {
      panel.querySelector(".pixels").style.setProperty("--row", row);
      panel.querySelector(".note").textContent = notes[row][column];
      const word = words[row][column];
      if (word === null) return;
      panel.querySelector(".word").textContent = `“${word}” ${word === truth ? "✓" : "✗"}`;
      panel.querySelector(".word").className = `word ${word === truth ? "right" : "wrong"}`;
    });
  };
  slider.parentElement.hidden = false;
  slider.addEventListener("input", show);
  show(); // a browser may have kept the slider where it was
}

addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
