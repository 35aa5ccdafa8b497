// Shows the Markdown and LaTeX of steps and answers; without it they are there as the model wrote them.
"use strict";
(() => {
  const show = (card) => {
    for (const box of card.querySelectorAll(".text, .question")) caspoText.show(box, box.textContent);
    for (const box of card.querySelectorAll(".answer")) caspoText.showAnswer(box, box.textContent);
  };
  for (const card of document.querySelectorAll(".tree-card")) {
    if (card.open) show(card);
    else card.addEventListener("toggle", () => show(card), { once: true });
  }
  const button = document.createElement("button");
  button.type = "button";
  button.className = "switch";
  button.textContent = "Source";
  button.title = "Show the steps as the model wrote them";
  button.setAttribute("aria-pressed", false);
  caspoText.switchBy(button);
  document.querySelector(".key").append(button);
})();
