// Draws the charts, runs the sample explorer and the theme switch. The data lies in <script type="application/json">.
const read = id => JSON.parse(document.getElementById(id)?.textContent || "null");
const make = (tag, text, name) => { const e = document.createElement(tag); if (text) e.textContent = text; if (name) e.className = name; return e; };

async function drawCharts() {
  const options = { mode: "vega-lite", renderer: "svg", actions: false, defaultStyle: false, tooltip: { disableDefaultStyle: true } };
  const specs = read("specs") || {};
  for (const place of document.querySelectorAll("[data-chart]")) {
    await vegaEmbed(place, specs[place.dataset.chart], options);
  }
  document.documentElement.dataset.charts = "drawn";
}

function switchTheme() {
  const button = document.getElementById("theme"), names = ["auto", "light", "dark"];
  button.hidden = false;
  button.addEventListener("click", () => {
    const next = names[(names.indexOf(document.documentElement.dataset.theme || "auto") + 1) % 3];
    if (next === "auto") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = next;
    button.textContent = `Theme: ${next}`;
  });
}

const PAGE = 25;
class Explorer {
  // The state is in the address: report.html#samples?q=triangle&verdict=wrong
  constructor(data) {
    this.data = data;
    this.list = document.getElementById("problems");
    this.inputs = Object.fromEntries(["q", "domain", "model", "verdict"].map(name => [name, document.getElementById(`filter-${name}`)]));
    for (const domain of new Set(data.problems.map(p => p.domain))) this.inputs.domain.append(new Option(domain, domain));
    for (const model of data.models) this.inputs.model.append(new Option(model, model));
    this.fromAddress();
    for (const input of Object.values(this.inputs)) input.addEventListener("input", () => { this.toAddress(); this.show(PAGE); });
    addEventListener("hashchange", () => { this.fromAddress(); this.show(PAGE); });
    this.show(PAGE);
  }
  fromAddress() {
    const [section, query] = location.hash.slice(1).split("?");
    if (section !== "samples" || query === undefined) return;
    const given = new URLSearchParams(query);
    for (const [name, input] of Object.entries(this.inputs)) input.value = given.get(name) || "";
    document.getElementById("samples").scrollIntoView();
  }
  toAddress() {
    const set = Object.entries(this.inputs).filter(([, input]) => input.value).map(([name, input]) => [name, input.value]);
    history.replaceState(null, "", `#samples?${new URLSearchParams(set)}`);
  }
  // A problem's responses that pass the filters: of the model, with the verdict, and the words in it or in the problem.
  responses(problem) {
    const { q, domain, model, verdict } = Object.fromEntries(Object.entries(this.inputs).map(([name, input]) => [name, input.value]));
    if (domain && problem.domain !== domain) return [];
    const words = q.toLowerCase().split(/\s+/).filter(Boolean);
    const about = `${problem.id} ${problem.prompt} ${problem.answer}`.toLowerCase();
    return problem.responses.filter(([index, kind, reason, text]) =>
      (!model || this.data.models[index] === model) && (!verdict || kind === verdict) &&
      words.every(word => about.includes(word) || reason.toLowerCase().includes(word) || text.toLowerCase().includes(word)));
  }
  show(limit) {
    const found = this.data.problems.map(problem => [problem, this.responses(problem)]).filter(([, responses]) => responses.length);
    const count = found.reduce((sum, [, responses]) => sum + responses.length, 0);
    const whole = this.data.problems.reduce((sum, problem) => sum + problem.responses.length, 0);
    document.getElementById("found").textContent =
      `${found.length} of ${this.data.problems.length} problems, ${count} of ${whole} responses match`;
    this.list.replaceChildren(...found.slice(0, limit).map(([problem, responses]) => this.problem(problem, responses)));
    if (found.length > limit) {
      const more = make("button", `Show more (${found.length - limit} left)`);
      more.addEventListener("click", () => this.show(limit + 4 * PAGE));
      this.list.append(more);
    }
  }
  problem(problem, responses) {
    const right = responses.filter(([, kind]) => kind === "right").length;
    const item = make("details", "", "problem"), head = make("summary"), body = make("div", "", "body");
    const tally = make("span", `${right}/${responses.length}`, "tally");
    tally.title = "right of the responses shown";
    head.append(tally, make("span", problem.prompt.replaceAll(/\s+/g, " "), "snippet"), make("span", `${problem.domain}, ${problem.id}`, "tag"));
    item.append(head, body);
    item.addEventListener("toggle", () => { if (item.open && !body.hasChildNodes()) this.fill(body, problem, responses); });
    return item;
  }
  fill(body, problem, responses) {
    body.append(make("pre", problem.prompt, "prompt"));
    if (problem.answer) body.append(make("p", `Reference answer: ${problem.answer}`, "muted"));
    for (const [index, kind, reason, text] of responses) {
      const block = make("div", "", `response ${kind}`), head = make("h4");
      head.append(make("b", kind), make("span", ` by ${this.data.models[index]}${reason ? `: ${reason}` : ""}`));
      block.append(head, make("pre", text));
      body.append(block);
    }
  }
}

switchTheme();
if (read("sample-data")) new Explorer(read("sample-data"));
drawCharts();
