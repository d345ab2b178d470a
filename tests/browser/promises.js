// What every page promises, as a list of sentences about what is broken on this one.
() => {
  const broken = []
  const say = (sentence, nodes) => {
    const found = [...nodes]
    if (found.length) broken.push(`${sentence}: ${found.slice(0, 3).map((n) => n.outerHTML.slice(0, 120)).join(" | ")}`)
  }
  const all = (selector) => [...document.querySelectorAll(selector)]

  if (document.documentElement.lang !== "en") broken.push("html has no lang")
  if (!/^.+ · dkl-bench$/.test(document.title)) broken.push(`a title that names no page: ${document.title}`)
  if (all("h1").length !== 1) broken.push(`${all("h1").length} h1`)
  const levels = all("h1, h2, h3, h4, h5, h6").map((node) => Number(node.tagName[1]))
  levels.forEach((level, i) => { if (i && level > levels[i - 1] + 1) broken.push(`h${level} after h${levels[i - 1]}`) })
  say("inline code or style", all("[style]:not(.uplot *), style, script:not([src])"))
  say("handlers in attributes", all("*").filter((n) => n.getAttributeNames().some((name) => /^on|^hx-on/.test(name))))
  const ids = all("[id]").map((node) => node.id)
  say("an id twice", all("[id]").filter((node) => ids.filter((id) => id === node.id).length > 1))
  say("a control without a name", all("main input:not([type=hidden]), main select, main textarea")
    .filter((n) => !n.labels?.length && !n.ariaLabel && !n.getAttribute("aria-labelledby")))
  say("a link that names nothing here", all("a[href^='#']")
    .filter((n) => n.getAttribute("href") !== "#" && !document.getElementById(decodeURIComponent(n.hash.slice(1)))))
  say("a link to another host that passes on where one came from", all("a[target=_blank]:not([rel~=noopener])"))

  const pictures = all("svg").filter((svg) => !svg.closest("[aria-hidden=true]"))
  // A picture is an image with a name, or a named group of links.
  say("a picture that is not said", pictures.filter((svg) =>
    !(svg.ariaLabel || svg.getAttribute("aria-labelledby") || svg.querySelector(":scope > title"))
    || !(svg.getAttribute("role") === "img" || (svg.getAttribute("role") === "group" && svg.querySelector("a")))))
  say("a picture without its table", pictures.filter((svg) => !svg.closest("td, th")
    && !svg.closest("figure, details, form, li")?.querySelector("table")
    && !svg.closest("figure")?.nextElementSibling?.matches("table, :has(> table)")
    && !document.getElementById(svg.getAttribute("aria-details"))?.matches("table, :has(table)")))
  say("an image without a description", all("img:not([alt])"))
  return broken
}
