type Child = Node | string | null

type Own<Element> = Partial<Omit<Element, 'attributes' | 'children' | 'style'>>

type Properties<Name extends keyof HTMLElementTagNameMap> = Own<HTMLElementTagNameMap[Name]> & {
  readonly attributes?: Readonly<Record<string, string>>
}

/** Creates an element. Texts are texts: nothing here reads HTML. */
export function element<Name extends keyof HTMLElementTagNameMap>(
  name: Name,
  { attributes = {}, ...properties }: Properties<Name> = {},
  ...children: readonly Child[]
): HTMLElementTagNameMap[Name] {
  const created: HTMLElementTagNameMap[Name] = document.createElement(name)
  Object.assign(created, properties)
  for (const [attribute, value] of Object.entries(attributes)) created.setAttribute(attribute, value)
  created.append(...children.filter((child) => child !== null))
  return created
}

/**
 * Replaces the children, and gives the focus back to the control with the same `data-focus`: what the user operates must not
 * lose it when rows change.
 */
export function replace(parent: HTMLElement, ...children: readonly Child[]): void {
  const root = parent.getRootNode()
  const active = root instanceof ShadowRoot || root instanceof Document ? root.activeElement : null
  const focus = active instanceof HTMLElement && parent.contains(active) ? active.dataset['focus'] : undefined
  parent.replaceChildren(...children.filter((child) => child !== null))
  if (focus === undefined) return
  const same = [...parent.querySelectorAll<HTMLElement>('[data-focus]')].find((each) => each.dataset['focus'] === focus)
  // The row of the button is gone: the list keeps the place of the keyboard.
  if (same) same.focus()
  else parent.focus()
}
