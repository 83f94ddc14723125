// The quiz counts the first choice of every question. Everything else on the pages works without a script.
for (const quiz of document.querySelectorAll(".cola-quiz")) {
  const score = quiz.querySelector(".cola-score"), asked = new Set(), right = new Map();
  quiz.addEventListener("toggle", ({ target }) => {
    const question = target.closest(".cola-question");
    if (!target.open || asked.has(question)) return;
    asked.add(question);
    const answers = { you: target.dataset.right === "1", ...JSON.parse(question.dataset.others) };
    for (const [name, good] of Object.entries(answers)) right.set(name, (right.get(name) || 0) + good);
    score.textContent = `Right so far: ${[...right].map(([name, n]) => `${name} ${n} of ${asked.size}`).join(", ")}`;
  }, true);
}
